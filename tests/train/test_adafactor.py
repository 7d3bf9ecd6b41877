"""Adafactor in blocks of rows is the library's Adafactor."""

import pytest
import torch
from transformers.optimization import Adafactor

from distill_energy.train import adafactor
from distill_energy.train.adafactor import BlockwiseAdafactor

SHAPES = [(70, 16), (3, 40), (1, 9), (16,), (2, 5, 6), (300, 1)]


def weights() -> list[torch.nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=random) * 0.05) for shape in SHAPES]


def set_gradients(parameters, step: int) -> None:
    """The third step's are a hundred times larger, so that the size of the update is limited."""
    random = torch.Generator().manual_seed(step)
    for weight in parameters:
        weight.grad = torch.randn(weight.shape, generator=random) * (0.1 if step == 2 else 1e-3)


def build(kind, parameters, **changes):
    options = {"lr": 1e-2, "relative_step": False, "scale_parameter": True, "warmup_init": False}
    return kind(parameters, **options | changes)


@pytest.mark.parametrize("changes", [{}, {"scale_parameter": False}, {"weight_decay": 0.1}])
@pytest.mark.parametrize("block", [1, 64, 1 << 20])
def test_it_steps_as_the_library(monkeypatch, changes, block):
    monkeypatch.setattr(adafactor, "BLOCK", block)
    theirs, ours = weights(), weights()
    library, own = build(Adafactor, theirs, **changes), build(BlockwiseAdafactor, ours, **changes)
    for step in range(5):
        for parameters, optimizer in ((theirs, library), (ours, own)):
            set_gradients(parameters, step)
            optimizer.step()
            assert all(weight.grad is not None for weight in parameters)
        for a, b, start in zip(theirs, ours, weights(), strict=True):
            assert (a - start).abs().max() > 0
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-7)


def test_a_state_of_one_is_a_state_of_the_other():
    theirs, ours = weights(), weights()
    library, own = build(Adafactor, theirs), build(BlockwiseAdafactor, ours)
    for parameters, optimizer in ((theirs, library), (ours, own)):
        for step in range(2):
            set_gradients(parameters, step)
            optimizer.step()
    a, b = library.state_dict(), own.state_dict()
    for number, state in a["state"].items():
        assert state.keys() == b["state"][number].keys()
    own.load_state_dict(a)
    library.load_state_dict(b)
    for parameters, optimizer in ((theirs, library), (ours, own)):
        set_gradients(parameters, 2)
        optimizer.step()
    for x, y in zip(theirs, ours, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7)


def test_bfloat16_is_left_to_the_library():
    """To the bit: rounding is the library's."""
    found = []
    for kind in (Adafactor, BlockwiseAdafactor):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 64, dtype=torch.bfloat16).reshape(8, 8))
        weight.grad = torch.full_like(weight, 0.01)
        build(kind, [weight]).step()
        found.append(weight.detach())
    assert torch.equal(*found)
