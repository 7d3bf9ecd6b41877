"""Which kernel computes a cross-entropy, and what Liger's gives, in Triton's interpreter where there is no GPU."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from distill_energy.errors import UserError
from distill_energy.kd.losses import ce
from tests.train.tiny import params, run, write_rows


@pytest.fixture
def installed(monkeypatch):
    """Say that the package is there, or that it is not."""

    def say(there: bool) -> None:
        monkeypatch.setattr(ce.importlib.util, "find_spec", lambda name: object() if there else None)

    return say


@pytest.mark.parametrize(
    ("asked", "device", "there", "kernel"),
    [
        (None, "cpu", True, "chunks"),
        (None, "cuda:0", False, "chunks"),
        (None, "cuda:0", True, "chunks"),
        (True, "cuda:0", True, "liger"),
        (False, "cuda:0", True, "chunks"),
        (False, "cpu", False, "chunks"),
    ],
)
def test_choice(installed, asked, device, there, kernel):
    installed(there)
    assert ce.choose_kernel(asked, device) == kernel


@pytest.mark.parametrize(
    ("device", "there", "message"),
    [
        ("cuda:1", False, "training.liger is true, but the package liger-kernel is not installed"),
        ("cpu", True, "training.liger is true, but it needs a CUDA GPU, this training runs on cpu"),
    ],
)
def test_asked_for_but_missing(installed, device, there, message):
    installed(there)
    with pytest.raises(UserError, match=message):
        ce.choose_kernel(True, device)


def test_a_training_says_which(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write_rows(tmp_path / "data" / "train.parquet", 8, seed=1)
    write_rows(tmp_path / "data" / "validation.parquet", 2, seed=2)
    inputs = {"data": tmp_path / "data"}
    results, _, _ = run(tmp_path / "a", params(max_steps=1), inputs)
    assert results["ce_kernel"] == "chunks"
    with pytest.raises(UserError, match=r"training\.liger is true, but it needs a CUDA GPU"):
        run(tmp_path / "b", params(max_steps=1, liger=True), inputs)


INTERPRETED = """
import torch
from distill_energy.kd.losses.ce import ce_loss

for biased in (False, True):
    torch.manual_seed(0)
    hidden = torch.randn(13, 8, requires_grad=True)
    weight = torch.randn(50, 8, requires_grad=True)
    inputs = [hidden, weight, *([torch.randn(50, requires_grad=True)] if biased else [])]
    labels = torch.randint(50, (13,))
    found = []
    for kernel in ("chunks", "liger"):
        out = ce_loss(hidden, weight, labels, bias=inputs[2] if biased else None, kernel=kernel)
        assert out.tokens == 13 and torch.equal(out.parts["ce"], out.loss.detach())
        found.append([out.loss.detach(), *torch.autograd.grad(out.loss * 0.3, inputs)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
empty = ce_loss(hidden[:0], weight, labels[:0], kernel="liger").loss
empty.backward()
assert float(empty.detach()) == 0
print("same")
"""


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("liger_kernel", "triton")),
    reason="liger-kernel and triton are not installed",
)
def test_in_the_interpreter_it_gives_our_loss_and_gradients(repo):
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(repo / "workflow_scripts"), *sys.path])}
        | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["same"], done.stderr[-2000:]
