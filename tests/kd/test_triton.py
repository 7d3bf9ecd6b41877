"""Our Triton kernels in Triton's interpreter on a CPU, against the chunks in float64; products and their memory."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distill_energy.errors import UserError
from distill_energy.kd.losses import ce, linear

INTERPRETED = """
import torch
from distill_energy.kd.cache.spec import CacheSpec
from distill_energy.kd.losses import triton_kernel
from distill_energy.kd.losses.ce import ce_loss
from distill_energy.kd.losses.kd import kd_loss
from distill_energy.kd.losses.teacher import TeacherTensors

triton_kernel.BLOCK = 64  # several blocks a row, the last one cut
torch.manual_seed(0)
n, H, V, head, tail = 9, 8, 157, 5, 6
spec = CacheSpec.from_params({"method": "head_tail", "head": head, "tail": tail, "seed": 0}, V)
ids = torch.stack([torch.randperm(V)[: head + tail] for _ in range(n)])
values = torch.randn(n, head + tail).sort(1, descending=True).values
counts = torch.randint(1, 4, (n, tail)).float()
lse = torch.randn(n, len(spec.lse_temperatures))
teacher = TeacherTensors(ids, values, counts, lse, spec)
labels = torch.randint(V, (n,))
labels[0] = ids[0, 0]  # a label among the teacher's ids

def found(dtype, kernel, loss, bias, cap, scale):
    torch.manual_seed(1)
    hidden, weight = (scale * torch.randn(n, H, dtype=torch.float64)).to(dtype), torch.randn(V, H).to(dtype)
    inputs = [x.requires_grad_() for x in (hidden, weight, *([torch.randn(V).to(dtype)] if bias else []))]
    b = inputs[2] if bias else None
    more = {"bias": b, "softcap": cap, "kernel": kernel, "chunk_rows": 4}
    out = ce_loss(inputs[0], inputs[1], labels, **more) if loss is None else kd_loss(
        inputs[0], inputs[1], labels, teacher, loss[0], loss[1], **more)
    return [out.loss.detach(), *out.parts.values(), *torch.autograd.grad(out.loss * 0.7, inputs)]

for loss in (None, (0.4, 1.0), (0.4, 2.0), (0.0, 1.5), (1.0, 2.0)):
    for bias, cap, scale in ((False, None, 1.0), (True, 3.0, 1.0), (False, None, 40.0)):
        exact = found(torch.float64, "chunks", loss, bias, cap, scale)
        for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 3e-5)):
            for ours, right in zip(found(dtype, "triton", loss, bias, cap, scale), exact, strict=True):
                off = (ours.double() - right).abs().max() / right.abs().max().clamp_min(1e-12)
                assert off < tolerance, (loss, bias, cap, scale, dtype, float(off))
# Distillation at alpha 1 is cross-entropy to the last bit.
one, other = (found(torch.float32, "triton", loss, True, None, 1.0) for loss in ((1.0, 2.0), None))
assert all(torch.equal(a, b) for a, b in zip([one[0], *one[3:]], [other[0], *other[2:]], strict=True))
print("same")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_in_the_interpreter_against_float64(repo):
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(repo / "workflow_scripts"), *sys.path])}
        | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["same"], done.stderr[-3000:]


@pytest.mark.parametrize(
    ("liger", "loss", "device", "there", "message"),
    [
        (None, "jsd", "cuda:0", True, "the loss 'jsd' has none"),
        (True, "ce", "cuda:0", True, "training.liger is true"),
        (None, "kd", "cuda:0", False, "the package triton is not installed"),
        (None, "kd", "cpu", True, "it needs a CUDA GPU, this training runs on cpu"),
    ],
)
def test_asked_for_and_impossible(monkeypatch, liger, loss, device, there, message):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(ce.importlib.util, "find_spec", lambda name: object() if there else None)
    with pytest.raises(UserError, match=f"training.loss_kernel is triton, but {message}"):
        ce.choose_triton("triton", liger, loss, device)
    assert not ce.choose_triton(None, liger, loss, device)


class Largest(TorchDispatchMode):
    """The most elements that one product made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.mm.default:
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("rows", [16, 5])
def test_the_weight_s_gradient_makes_no_second_of_its_size(monkeypatch, rows):
    """Under bfloat16 autocast, in one chunk and in several; by blocks it is what it is in one piece."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(16, 128), torch.randn(600, 128, requires_grad=True)
    labels = torch.randint(600, (16,))

    def gradient():
        weight.grad = None
        with torch.autocast("cpu", torch.bfloat16), Largest() as largest:
            ce.ce_loss(hidden, weight, labels, chunk_rows=rows).loss.backward()
        return weight.grad, largest.elements

    whole, most = gradient()
    assert most == weight.numel()  # smaller than a block
    monkeypatch.setattr(linear, "WEIGHT_BLOCK", 50 * 128)
    parts, most = gradient()
    assert most <= max(50 * 128, rows * 600) < weight.numel()
    assert torch.equal(parts, whole)


def test_logits_rounded_to_bfloat16_do_not_move_the_gradient():
    """Where the product is rounded (a CPU; a GPU keeps fp32), it adds a fraction of what bfloat16 weights and states
    make of the gradient themselves, and no bias: its mean over rows is a hundredth of it."""
    torch.manual_seed(0)
    states, weight, labels = torch.randn(400, 64), 0.3 * torch.randn(500, 64), torch.randint(500, (400,))
    rounded = [x.bfloat16().double() for x in (states, weight)]

    def gradient(states, weight, round_logits):
        logits = states @ weight.T
        q = torch.softmax(logits.bfloat16().double() if round_logits else logits, 1)
        return q - torch.nn.functional.one_hot(labels, 500)

    exact = gradient(states.double(), weight.double(), False)
    factors = gradient(*rounded, False)
    both = gradient(*rounded, True)
    extra = both - factors
    assert float(extra.norm()) < 0.02 * float(exact.norm())
    cosine = torch.nn.functional.cosine_similarity(both.flatten(), exact.flatten(), 0)
    assert float(cosine) > 0.9998
    assert float(extra.mean(0).norm()) < 0.01 * float(exact.norm(dim=1).mean())
