"""Weights in 8 and 4 bits: rounded as by hand, saved, loaded again by plain transformers, refused by name."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from distill_energy.errors import UserError
from distill_energy.models.quantised import check_groups, is_quantised, losses, quantised_model
from distill_energy.models.sources import load_model

pytest.importorskip("torchao")
SPEC = {"source": "random", "layers": 2, "hidden": 64, "heads": 2, "vocabulary": 384, "seed": 0}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    load_model(SPEC, {}, "float32", "cpu").save_pretrained(folder)
    return folder


def half_a_step(weight, bits, group):
    """Half of the distance between two levels, in float64: a scale for each group of inputs (None: each row)."""
    rows, columns = weight.shape
    largest = weight.double().reshape(rows, -1, group or columns).abs().amax(-1, keepdim=True)
    return (largest / (2**bits - 1)).expand(-1, -1, group or columns).reshape(rows, columns)


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, None), (4, 64)])
def test_weights_are_the_nearest_and_saved_ones_give_equal_logits(plain, tmp_path, bits, group):
    original = load_model(SPEC, {}, "float32", "cpu")
    model = quantised_model(str(plain), torch.float32, bits, group, local_files_only=True)
    wanted = dict(original.named_parameters())
    rounded = {name: p for name, p in model.named_parameters() if is_quantised(p)}
    assert len(rounded) == 14 and not any("embed" in name or "lm_head" in name for name in rounded)
    for name, weight in rounded.items():
        was = wanted[name].detach()
        off = (weight.dequantize().double() - was.double()).abs() / half_a_step(was, bits, group or {4: 32}.get(bits))
        assert off.max() < 1.001 and 0.45 < off.mean() < 0.55, name  # to the nearest level, and levels this far apart
    worst = max(row["relative_error"] for row in losses(model, original))
    assert (0.001 < worst < 0.01) if bits == 8 else (0.05 < worst < 0.2)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
        assert not torch.equal(original(input_ids=ids).logits, model(input_ids=ids).logits)


def test_groups_that_do_not_divide_a_layer_are_named():
    with pytest.raises(UserError, match=r"int4: model\.layers\.0\.self_attn\.q_proj has 48 inputs, no multiple of"):
        check_groups(load_model({**SPEC, "hidden": 48}, {}, "float32", "cpu"), 4, None)
