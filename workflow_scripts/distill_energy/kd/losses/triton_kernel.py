"""The loss of a chunk of logits as Triton kernels: soft-max statistics at 1 and T, then the gradient in their place.

The passes of ``kd.py`` and ``ce.py`` over a chunk's logits (maximum, exponentials, two sums, the mixed gradient) become
one reading, then one reading and writing; what stands on the teacher's ids and on the label is added row by row. Used
on CUDA where ``training.loss_kernel: triton`` asks for it; not measured. Runs in Triton's interpreter on a CPU
(``TRITON_INTERPRET=1``), in float32 or float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 4096  # logits of a row that a program takes at a time


@triton.jit
def _statistics(logits, top_out, sum_1, sum_t, stride, width, inverse_t, BLOCK: tl.constexpr):
    """Of row ``program_id``: its maximum, Σ exp(x − max) and Σ exp((x − max)/T), in one pass (Milakov & Gimelshein
    2018, arXiv 1805.02867)."""
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    lane = tl.arange(0, BLOCK)
    kind = logits.dtype.element_ty
    top = tl.full([BLOCK], float("-inf"), kind)
    one, soft = tl.zeros([BLOCK], kind), tl.zeros([BLOCK], kind)
    for at in range(0, width, BLOCK):
        x = tl.load(start + at + lane, mask=at + lane < width, other=float("-inf"))
        new = tl.maximum(top, x)
        base = tl.where(new == float("-inf"), 0.0, new)
        one = one * tl.exp(top - base) + tl.exp(x - base)
        soft = soft * tl.exp((top - base) * inverse_t) + tl.exp((x - base) * inverse_t)
        top = new
    whole = tl.max(top, 0)
    tl.store(top_out + row, whole)
    tl.store(sum_1 + row, tl.sum(one * tl.exp(top - whole), 0))
    tl.store(sum_t + row, tl.sum(soft * tl.exp((top - whole) * inverse_t), 0))


@triton.jit
def _gradient(logits, top_in, scale_1, scale_t, stride, width, inverse_t, BLOCK: tl.constexpr):
    """x ← scale_1·exp(x − max) + scale_t·exp((x − max)/T), in place."""
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    lane = tl.arange(0, BLOCK)
    top, a, b = tl.load(top_in + row), tl.load(scale_1 + row), tl.load(scale_t + row)
    for at in range(0, width, BLOCK):
        inside = at + lane < width
        x = tl.load(start + at + lane, mask=inside, other=float("-inf")) - top
        tl.store(start + at + lane, a * tl.exp(x) + b * tl.exp(x * inverse_t), mask=inside)


@triton.jit
def _scatter(logits, ids, values, stride, width, WIDTH: tl.constexpr):
    """x[ids] += values, a row a program; ids of a row may repeat."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, WIDTH)
    inside = lane < width
    place = tl.load(ids + row * width + lane, mask=inside, other=0)
    value = tl.load(values + row * width + lane, mask=inside, other=0.0)
    tl.atomic_add(logits + row * stride + place, value, mask=inside)


def statistics(logits: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(max [r, 1], Σ exp(x − max) [r, 1], Σ exp((x − max)/T) [r, 1]) of logits [r, V] whose rows are contiguous."""
    rows, width = logits.shape
    top, one, soft = (torch.empty(rows, 1, dtype=logits.dtype, device=logits.device) for _ in range(3))
    if rows:
        _statistics[(rows,)](logits, top, one, soft, logits.stride(0), width, 1.0 / temperature, BLOCK=_block(width))
    return top, one, soft


def gradient_(
    logits: torch.Tensor,
    top: torch.Tensor,
    scale_1: torch.Tensor,
    scale_t: torch.Tensor,
    temperature: float,
    ids: torch.Tensor,
    at_ids: torch.Tensor,
) -> None:
    """Overwrite logits [r, V] by scale_1·exp(x − max) + scale_t·exp((x − max)/T), and add ``at_ids`` [r, m] on ``ids``
    [r, m]. max and scales are [r, 1]."""
    rows, width = logits.shape
    if not rows:
        return
    each = [x.expand(rows, 1).contiguous() for x in (top, scale_1, scale_t)]
    _gradient[(rows,)](logits, *each, logits.stride(0), width, 1.0 / temperature, BLOCK=_block(width))
    if (m := ids.shape[1]) > 0:
        grid, ids, at_ids = (rows,), ids.contiguous(), at_ids.to(logits.dtype).contiguous()
        _scatter[grid](logits, ids, at_ids, logits.stride(0), m, WIDTH=triton.next_power_of_2(m))


def _block(width: int) -> int:
    return min(BLOCK, triton.next_power_of_2(width))
