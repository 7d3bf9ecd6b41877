"""Cross-entropy of the next token, summed over tokens, fused with the output layer.

By this package's chunks, or by the Liger kernel (Hsu et al. 2024, arXiv 2410.10989) where the caller chose it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from typing import TYPE_CHECKING, Any

import torch

from ...errors import UserError
from . import LossParts
from .linear import LossOutput, fused_linear_loss

if TYPE_CHECKING:
    from ...pipelines.base import Settings

CHUNKS, LIGER, TRITON = "chunks", "liger", "triton"


def choose_kernel(asked: bool | None, device: str) -> str:
    """Which of the two computes the cross-entropy on ``device``: this package's, or Liger's if it is asked for.

    Distillation runs on this package's kernel, so by default everything does: a difference between pipelines is then
    none of kernels. Raises UserError if Liger's is asked for (``True``) and cannot be.
    """
    if not asked:
        return CHUNKS
    why_not = None
    if torch.device(device).type != "cuda":
        why_not = f"it needs a CUDA GPU, this training runs on {device}"
    elif importlib.util.find_spec("liger_kernel") is None:
        why_not = "the package liger-kernel is not installed"
    if why_not:
        raise UserError(f"training.liger is true, but {why_not}")
    return LIGER


def choose_triton(asked: str | None, liger: bool | None, loss: str, device: str) -> bool:
    """Whether a training's losses run on the kernels of ``triton_kernel.py`` (``training.loss_kernel``).

    Raises UserError if they are asked for and cannot be.
    """
    if asked != TRITON:
        return False
    why_not = None
    if loss not in ("ce", "kd"):
        why_not = f"the loss {loss!r} has none"
    elif liger:
        why_not = "training.liger is true"
    elif importlib.util.find_spec("triton") is None:
        why_not = "the package triton is not installed"
    elif torch.device(device).type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        why_not = f"it needs a CUDA GPU, this training runs on {device}"
    if why_not:
        raise UserError(f"training.loss_kernel is triton, but {why_not}")
    return True


def kernel_version(kernel: str) -> str:
    """For the results: the kernel, with Liger's version."""
    return f"{LIGER} {importlib.metadata.version('liger-kernel')}" if kernel == LIGER else kernel


def ce_loss(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    labels: torch.Tensor,
    chunk_rows: int | None = None,
    bias: torch.Tensor | None = None,
    kernel: str = CHUNKS,
    softcap: float | None = None,
) -> LossOutput:
    """Σ −log softmax(hidden·Wᵀ + b)[label] over n tokens.

    hidden: [n, H], rows of response tokens only (the state at label − 1); lm_head_weight: [V, H]; labels: [n].
    ``.loss`` is the differentiable sum (divide by the token count), ``.parts["ce"]`` the same, detached.
    kernel: as ``choose_kernel`` says; softcap: as in ``fused_linear_loss``.
    """
    labels = labels.to(hidden.device).long()
    if kernel == LIGER and softcap:
        raise UserError("training.liger: not for models with soft-capped logits")
    if kernel == LIGER and len(labels):
        loss = _liger(hidden, lm_head_weight, labels, bias)
        return LossOutput(loss, {"ce": loss.detach()}, len(labels))

    def chunk(logits: torch.Tensor, rows: slice, want_grad: bool) -> tuple[torch.Tensor, torch.Tensor]:
        target = labels[rows, None]
        picked = logits.gather(1, target)
        if kernel == TRITON:
            from .triton_kernel import gradient_, statistics

            top, total, _ = statistics(logits, 1.0)
            loss = (torch.log(total) + top - picked)[:, 0]
            if want_grad:
                at_label = torch.full_like(picked, -1.0)
                gradient_(logits, top, 1 / total, torch.zeros_like(total), 1.0, target, at_label)
            return loss, loss[:, None]
        top = logits.amax(1, keepdim=True)
        e = logits.sub_(top).exp_()
        total = e.sum(1, keepdim=True)
        loss = (torch.log(total) + top - picked)[:, 0]
        if want_grad:
            e.mul_(1 / total)  # as distillation does, so that α = 1 is this to the last bit
            e.scatter_add_(1, target, torch.full_like(picked, -1.0))
        return loss, loss[:, None]

    loss, parts = fused_linear_loss(hidden, lm_head_weight, bias, chunk, chunk_rows, softcap)
    return LossOutput(loss, {"ce": parts.detach()[0]}, len(labels))


def objective(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None,
    teacher: Any,
    settings: Settings,
) -> LossParts:
    """Cross-entropy on the labels (see ``kd.losses.Objective``)."""
    result = ce_loss(hidden, weight, labels, bias=bias, kernel=settings.ce_kernel, softcap=settings.softcap)
    return LossParts(result.loss, result.parts["ce"])


def _liger(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    # The weight's gradient is summed over chunks in fp32, as here; by default it would be in the weight's own dtype.
    return LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)(weight, hidden, labels, bias)
