"""Counted from the shape, as torch counts while it runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from distill_energy.models.flops import attended_whole, forward_flops, shape_of, training_flops

from .test_matrix import build

LENGTHS = [11, 11, 11]


def counted(model, ids, backward=False) -> float:
    model.config._attn_implementation = "eager"
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=ids, use_cache=False).logits
        if backward:
            logits.float().square().sum().backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi3", "olmo2", "granite", "gpt_neox"])
def test_forward_and_backward_are_those_that_torch_counts(name):
    model = build(name)
    ids = torch.arange(sum(LENGTHS)).reshape(len(LENGTHS), -1) % 90
    shape = shape_of(model)
    tokens = ids.numel()
    ours = forward_flops(shape, tokens, attended_whole(LENGTHS), tokens)
    assert ours == pytest.approx(counted(model, ids), rel=0.01)
    whole = training_flops(shape, tokens, attended_whole(LENGTHS), tokens)
    model.train()
    assert whole["forward"] + whole["backward"] == pytest.approx(counted(model, ids, backward=True), rel=0.01)


def test_the_output_layer_counts_on_its_rows_alone():
    shape = shape_of(build("llama"))
    few, many = (forward_flops(shape, 100, 0, rows) for rows in (10, 100))
    assert many - few == pytest.approx(90 * 2 * 96 * 32)


def test_experts_that_a_token_does_not_visit_are_not_counted():
    sparse = shape_of(build("mixtral"))
    dense = shape_of(build("llama"))
    assert dense.per_token < sparse.per_token < 2.2 * dense.per_token  # 2 of 4 experts


def test_what_is_no_attention_has_a_reason():
    assert "configuration names no attention" in shape_of(build("mamba"))
