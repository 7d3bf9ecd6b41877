"""A compiled student gives the losses of one that is not, and batches of many lengths share its graphs."""

import itertools
import shutil

import pytest
import torch

from distill_energy.train import learner

from .tiny import MODEL, CountingMeter, params, run


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler for torch.compile")
def test_same_losses_and_no_graph_a_length(tmp_path, data):
    changes = {"model": {**MODEL, "layers": 1}, "packing": True, "max_steps": 8, "eval_every": 4}
    _, plain, _ = run(tmp_path / "plain", params(**changes), data)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    _, compiled, _ = run(tmp_path / "compiled", params(compile=True, **changes), data)
    assert len({b["tokens"] - a["tokens"] for a, b in itertools.pairwise(compiled)}) > 4
    assert 1 <= counters["stats"]["unique_graphs"] <= 2  # one to train, one to evaluate
    assert not counters["graph_break"]
    for key in ("train_loss", "grad_norm", "eval_loss"):
        a = [row[key] for row in plain if row[key] is not None]
        b = [row[key] for row in compiled if row[key] is not None]
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize("compiles", [True, False])
def test_compiling_is_a_phase(tmp_path, data, monkeypatch, compiles):
    """With loading, evaluation and saving; here without the compiler, whose place it is."""
    monkeypatch.setattr(learner, "compile_layers", lambda base: None)
    meter = CountingMeter()
    run(tmp_path, params(compile=compiles, max_steps=2, eval_every=2), data, meter)
    assert {"load", "evaluation", "save"} <= set(meter.phases) and ("compile" in meter.phases) == compiles
