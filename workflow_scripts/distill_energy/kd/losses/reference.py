"""The formula of the paper's harness, for comparison: truncated top-k, temperature baked in, no tail.

Log-probabilities log p_T of the top k tokens were cached at one T. The loss is T²·Σ_{top k} p_T (log p_T − log q_T)
with the full soft-max of every position in fp32; neither side is renormalised, so what the tail would pull is lost.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def reference_kd_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    top_ids: torch.Tensor,
    top_logp: torch.Tensor,
    alpha: float,
    temperature: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum over tokens, by plain autograd.

    logits: [n, V] of the student; labels: [n]; top_ids, top_logp: [n, k] of the teacher at this very ``temperature``;
    mask: [n], which of the positions count (the harness computes them all).
    """
    keep = torch.ones_like(labels, dtype=logits.dtype) if mask is None else mask.to(logits.dtype)
    ce = F.cross_entropy(logits.float() if logits.dtype != torch.float64 else logits, labels.long(), reduction="none")
    logq = F.log_softmax((logits if logits.dtype == torch.float64 else logits.float()) / temperature, dim=-1)
    kl = (top_logp.exp() * (top_logp - logq.gather(1, top_ids.long()))).sum(1)
    return ((alpha * ce + (1 - alpha) * temperature**2 * kl) * keep).sum()
