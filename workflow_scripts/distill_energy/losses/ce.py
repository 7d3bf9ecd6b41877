"""Cross-entropy of the next token, summed over tokens, fused with the output layer."""

from __future__ import annotations

import torch

from .linear import LossOutput, fused_linear_loss


def ce_loss(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    labels: torch.Tensor,
    chunk_rows: int = 104,
    bias: torch.Tensor | None = None,
) -> LossOutput:
    """Σ −log softmax(hidden·Wᵀ + b)[label] over n tokens.

    hidden: [n, H], rows of response tokens only (the state at label − 1); lm_head_weight: [V, H]; labels: [n].
    ``.loss`` is the differentiable sum (divide by the token count), ``.parts["ce"]`` the same, detached.
    """
    labels = labels.to(hidden.device).long()

    def chunk(logits: torch.Tensor, rows: slice, want_grad: bool) -> tuple[torch.Tensor, torch.Tensor]:
        target = labels[rows, None]
        picked = logits.gather(1, target)
        top = logits.amax(1, keepdim=True)
        e = logits.sub_(top).exp_()
        total = e.sum(1, keepdim=True)
        loss = (torch.log(total) + top - picked)[:, 0]
        if want_grad:
            e.div_(total)
            e.scatter_add_(1, target, torch.full_like(picked, -1.0))
        return loss, loss[:, None]

    loss, parts = fused_linear_loss(hidden, lm_head_weight, bias, chunk, chunk_rows)
    return LossOutput(loss, {"ce": parts.detach()[0]}, len(labels))
