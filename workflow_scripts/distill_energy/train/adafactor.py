"""Adafactor on a CPU, where it is bound by memory: matrices in blocks of rows that stay in the cache.

The library's step walks each matrix about a dozen times and makes temporaries of its size. Here three walks remain: one
for the gradient's mean squares, one for the update's size, which limits it, and one to apply it. The algorithm, its
state and its checkpoints are the library's (Shazeer & Stern 2018, arXiv 1804.04235, algorithm 4); results differ from
the library's in the rounding of sums. All else (vectors, other dtypes, a first moment) is left to the library.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers.optimization import Adafactor

BLOCK = 1 << 20  # elements of a matrix at a time: in the last cache, and enough work to wake a thread for


class BlockwiseAdafactor(Adafactor):
    """As ``Adafactor`` without relative steps, for weights on a CPU."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        done: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and _fits(weight, group):
                    self._step_of_matrix(weight, weight.grad, group)
                    done.append((weight, weight.grad))
                    weight.grad = None  # hidden from the library's step
        super().step(closure)
        for weight, grad in done:
            weight.grad = grad

    def _step_of_matrix(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"], state["RMS"] = 0, 0
            state["exp_avg_sq_row"], state["exp_avg_sq_col"] = grad.new_zeros(len(grad)), grad.new_zeros(grad.shape[1])
        state["step"] += 1
        rows = max(1, BLOCK // grad.shape[1])
        blocks = [slice(at, at + rows) for at in range(0, len(grad), rows)]
        room = grad.new_empty(min(rows, len(grad)), grad.shape[1])

        of_rows, of_columns = grad.new_empty(len(grad)), grad.new_zeros(grad.shape[1])
        size = 0.0
        for block in blocks:
            part = grad[block]
            square = torch.mul(part, part, out=room[: len(part)]).add_(group["eps"][0])
            torch.mean(square, 1, out=of_rows[block])
            of_columns += square.sum(0)
            size += float(torch.linalg.vector_norm(weight[block])) ** 2
        kept = 1.0 - math.pow(state["step"], group["decay_rate"])
        state["exp_avg_sq_row"].mul_(kept).add_(of_rows, alpha=1.0 - kept)
        state["exp_avg_sq_col"].mul_(kept).add_(of_columns.div_(len(grad)), alpha=1.0 - kept)
        state["RMS"] = math.sqrt(size / weight.numel())

        row = state["exp_avg_sq_row"]
        row = (row / row.mean()).rsqrt_()[:, None]
        column = state["exp_avg_sq_col"].rsqrt()

        def update(block: slice) -> Tensor:
            part = grad[block]
            return torch.mul(part, column, out=room[: len(part)]).mul_(row[block])

        size = sum(float(torch.linalg.vector_norm(update(block))) ** 2 for block in blocks)
        rate = self._get_lr(group, state)
        scale = rate / max(1.0, math.sqrt(size / grad.numel()) / group["clip_threshold"])
        for block in blocks:
            part = weight[block]
            if group["weight_decay"]:
                part.mul_(1 - group["weight_decay"] * rate)
            part.sub_(update(block), alpha=scale)


def _fits(weight: Tensor, group: dict[str, Any]) -> bool:
    return (
        type(weight.data) is Tensor
        and weight.dim() == 2
        and weight.device.type == "cpu"
        and weight.dtype == weight.grad.dtype == torch.float32
        and group["beta1"] is None
        and not group["relative_step"]
    )
