"""Counted from the shape, as torch counts while it runs."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from distill_energy.models.flops import (
    Operations,
    attended_whole,
    forward_flops,
    generation_flops,
    shape_of,
    training_flops,
)
from distill_energy.models.peak import peak_of, reached

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


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi3", "granite"])
def test_generation_is_what_torch_counts_and_what_a_watch_sees(name):
    model = build(name)
    model.config._attn_implementation = "eager"
    prompts, new = [9, 9], 6
    ids = torch.arange(18).reshape(2, 9) % 90
    told = generation_flops(shape_of(model), prompts, [new, new])
    operations = Operations()
    operations.watch(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False
        )
    assert made.shape == (2, 15)
    assert sum(told.values()) == pytest.approx(float(counter.get_total_flops()), rel=0.01)
    assert operations.total() == pytest.approx(sum(told.values()), rel=1e-9)


def test_a_watch_counts_no_padding_and_says_what_it_cannot_count():
    operations = Operations()
    model = build("llama")
    operations.watch(model)
    ids = torch.arange(20).reshape(2, 10) % 90
    mask = torch.tensor([[1] * 10, [0] * 4 + [1] * 6])
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, logits_to_keep=1)
    assert operations.total() == pytest.approx(forward_flops(shape_of(model), 16, attended_whole([10, 6]), 2))
    operations.watch(build("mamba"))
    assert operations.total() is None and "attention" in operations.reason


def test_a_share_of_the_peak():
    assert peak_of(["NVIDIA H100 80GB HBM3"]) == 989e12
    assert peak_of(["NVIDIA H100 PCIe", "NVIDIA H100 PCIe"]) == 2 * 756e12
    assert peak_of(["NVIDIA A100-SXM4-80GB"]) == 312e12
    assert peak_of(["NVIDIA A400"]) is None and peak_of([]) is None
    found = reached(989e12, 4.0, ["NVIDIA H100 80GB HBM3"], None)
    assert found["utilisation"] == 0.25 and found["flop_per_s"] == 989e12 / 4
    assert reached(1e9, 1.0, [], None)["utilisation_reason"]
    assert reached(None, 1.0, [], None) == {}


def test_without_a_data_sheet_the_prerun_tells_what_the_host_reaches(tmp_path):
    pq.write_table(pa.table({"flops_per_s": [4e11], "dtype": ["bfloat16"]}), tmp_path / "calibration.parquet")
    found = reached(1e11, 1.0, [], tmp_path)
    assert found["utilisation"] == 0.25
    assert found["peak_source"] == "this host's own matrix product in bfloat16"
