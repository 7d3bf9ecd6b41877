"""Data-parallel training on two processes of this host."""

import os

import pytest

from distill_energy.errors import UserError
from distill_energy.train.processes import available, check_processes

from .tiny import CountingMeter, params, run

needs_two_cores = pytest.mark.skipif(available("cpu") < 2, reason="one processor core")


@pytest.mark.slow
@needs_two_cores
@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 1}, {"precision": "bf16_autocast"}])
def test_two_processes_train_as_one_does(tmp_path, data, changes):
    one_meter, two_meter = CountingMeter(), CountingMeter()
    alone, one, _ = run(tmp_path / "one", params(max_steps=8, **changes), data, one_meter)
    both, two, ctx = run(tmp_path / "two", params(max_steps=8, processes=2, **changes), data, two_meter)
    assert both["processes"] == 2
    tolerance = 2e-2 if "precision" in changes else 1e-3
    for key in ("train_loss", "eval_loss", "grad_norm"):
        a = [r[key] for r in one if r[key] is not None]
        b = [r[key] for r in two if r[key] is not None]
        assert a == pytest.approx(b, rel=tolerance), key
    # Rank 0 counts the tokens of both processes once.
    for kind in ("processed", "loss"):
        assert two_meter.tokens[kind] == one_meter.tokens[kind]
    assert alone["best_step"] == both["best_step"]
    assert not list(ctx.work.glob("rendezvous-*"))


@pytest.mark.slow
@needs_two_cores
def test_a_peer_that_fails_ends_the_training(tmp_path, data):
    """The peer cannot read its data (it alone: the file is hidden from it); rank 0 says what it said."""
    with pytest.raises(UserError, match="is not a multiple of its 2 processes"):
        run(tmp_path, params(processes=2, batch_size=3), data)


def test_more_processes_than_cores(tmp_path, data):
    with pytest.raises(UserError, match=rf"training.processes is 4096, this host has {available('cpu')}"):
        run(tmp_path, params(processes=4096, batch_size=4096), data)


def test_more_processes_than_gpus(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"training\.processes is 2, this host has 1 GPUs"):
        check_processes(2, "cuda")
    assert os.environ.get("WORLD_SIZE") is None
