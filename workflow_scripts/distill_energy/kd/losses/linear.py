"""Output layer and loss, fused in chunks of rows: the (tokens × vocabulary) logits never exist whole.

The gradient is computed in the forward pass, chunk by chunk, while the chunk's logits exist, so that backward only
scales it. Used by every loss of this package; a loss supplies one function of a chunk's logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

#: f(logits fp32 or fp64 [r, V], rows, want_grad) -> (loss [r], parts [r, p]); overwrites logits by d loss / d logits.
ChunkLoss = Callable[[torch.Tensor, slice, bool], tuple[torch.Tensor, torch.Tensor]]

CHUNK_BYTES = 512 << 20  # of a chunk's float32 logits on a GPU: products want many rows
CPU_ROWS = 104  # rows of a chunk on a CPU, where the passes over its logits want what fits the cache
BLOCK = 1 << 20  # logits that the element-wise passes take at a time on a CPU
WEIGHT_BLOCK = 1 << 25  # elements of the weight's gradient that a product in half precision makes at a time
SINGLE_USE = 1 << 22  # weight gradients above this many elements are scaled in place: one backward only


@dataclass
class LossOutput:
    """A summed loss and its parts, for logging (detached sums over tokens)."""

    loss: torch.Tensor  # scalar, sum over tokens; divide by the number of tokens
    parts: dict[str, torch.Tensor]  # scalars, detached, sums over tokens
    tokens: int

    def means(self) -> dict[str, float]:
        """Means per token of the parts."""
        return {name: float(value) / max(self.tokens, 1) for name, value in self.parts.items()}


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    """bf16 or fp16 inside autocast, else the hidden state's."""
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return hidden.dtype


class _FusedLinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, chunk_loss: ChunkLoss, chunk_rows: int, dtype: torch.dtype, softcap):
        need_h, need_w, need_b = ctx.needs_input_grad[:3]
        want = need_h or need_w or need_b
        accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        h, w = hidden.to(dtype), weight.to(dtype)
        n = h.shape[0]
        grad_h = torch.empty_like(h) if need_h else None
        once = 0 < n <= chunk_rows  # a single chunk's product is the weight's gradient itself
        grad_w = torch.zeros(weight.shape, dtype=accumulate, device=w.device) if need_w and not once else None
        grad_b = torch.zeros(bias.shape, dtype=accumulate, device=w.device) if need_b else None
        losses, parts = [], []
        buffer = None
        for start in range(0, n, chunk_rows):
            rows = slice(start, min(start + chunk_rows, n))
            size = rows.stop - rows.start
            if dtype == accumulate:  # write into one buffer for all chunks
                if buffer is None:
                    buffer = torch.empty(min(chunk_rows, n), w.shape[0], dtype=dtype, device=w.device)
                logits = torch.mm(h[rows], w.T, out=buffer[:size])
            else:
                logits = _product(h[rows], w.T, accumulate).to(accumulate)
            if bias is not None:
                logits.add_(bias)
            # The product wants many rows, the passes over its result want what fits the cache.
            block = size if logits.is_cuda else max(1, BLOCK // logits.shape[1])
            for at in range(0, size, block):
                stop = min(at + block, size)
                piece, slope = logits[at:stop], None
                if softcap:
                    piece.div_(softcap).tanh_()
                    slope = 1 - piece.square() if want else None
                    piece.mul_(softcap)
                loss, part = chunk_loss(piece, slice(start + at, start + stop), want)
                if slope is not None:
                    piece.mul_(slope)
                losses.append(loss)
                parts.append(part)
            if want:
                grad = logits.to(dtype)
                if need_h:
                    torch.mm(grad, w, out=grad_h[rows])
                if need_w:
                    if once and dtype == accumulate:
                        grad_w = torch.mm(grad.T, h)
                    elif dtype == accumulate:
                        grad_w.addmm_(grad.T, h[rows])
                    else:
                        if grad_w is None:
                            grad_w = torch.empty(weight.shape, dtype=accumulate, device=w.device)
                        _accumulate(grad_w, grad.T, h[rows], once)
                if need_b:
                    grad_b.add_(grad.sum(0, dtype=accumulate))
        if losses:
            total, part_sum = torch.cat(losses).sum(), torch.cat(parts).sum(0)
        else:
            total = torch.zeros((), dtype=accumulate, device=w.device)
            part_sum = torch.zeros(8, dtype=accumulate, device=w.device)
        ctx.grads = [grad_h, grad_w, grad_b]
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(part_sum)
        return total, part_sum

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_total, _):
        if ctx.grads is None:
            raise RuntimeError("this loss was already propagated: retain_graph is not supported for large vocabularies")
        out = []
        large = any(g is not None and g.numel() > SINGLE_USE for g in ctx.grads)
        for grad, dtype in zip(ctx.grads, ctx.dtypes, strict=True):
            if grad is not None:
                grad = (grad.mul_(grad_total) if large else grad * grad_total).to(dtype)
            out.append(grad)
        if large:
            ctx.grads = None
        return (*out, None, None, None, None)


def _product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """a·b of half-precision factors; on a GPU not rounded to theirs, as the product is summed in fp32 anyway."""
    return torch.mm(a, b, out_dtype=dtype) if a.is_cuda else torch.mm(a, b)


def _accumulate(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, first: bool) -> None:
    """total [V, H] ← (0 where ``first``, else total) + a·b, by blocks of rows: no second tensor of its size."""
    step = max(1, WEIGHT_BLOCK // total.shape[1])
    for at in range(0, total.shape[0], step):
        part = _product(a[at : at + step], b, total.dtype)
        if first:
            total[at : at + step].copy_(part)
        else:
            total[at : at + step].add_(part)


def chunk_rows_for(weight: torch.Tensor) -> int:
    """Rows of a chunk for an output layer [V, H]: by memory on a GPU, by cache on a CPU."""
    return max(CPU_ROWS, CHUNK_BYTES // (4 * weight.shape[0])) if weight.is_cuda else CPU_ROWS


def fused_linear_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    chunk_loss: ChunkLoss,
    chunk_rows: int | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Σ loss, Σ parts) over the rows of hidden [n, H] with output layer weight [V, H] and bias [V].

    ``softcap`` c: the loss sees c·tanh(logit/c), as Gemma's models do.

    Under autocast products are in its dtype, and losses, soft-maxes and the weight's gradient in fp32.
    """
    if chunk_rows is None:
        chunk_rows = chunk_rows_for(weight)
    if chunk_rows < 1:
        raise ValueError("chunk_rows must be at least 1")
    dtype = _compute_dtype(hidden)
    if not torch.is_grad_enabled():  # inside an autograd.Function this cannot be asked any more
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    with torch.autocast(hidden.device.type, enabled=False):
        return _FusedLinearLoss.apply(hidden, weight, bias, chunk_loss, chunk_rows, dtype, softcap)
