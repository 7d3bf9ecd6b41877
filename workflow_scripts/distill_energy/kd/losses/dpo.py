"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, eq. 7), summed over pairs:

    −log σ(β·[(log π(y_w) − log π_ref(y_w)) − (log π(y_l) − log π_ref(y_l))])

with y_w the chosen answer, y_l the rejected one, and log-probabilities summed over an answer's labels. The gradient
weighs each label's cross-entropy by ±β·σ(−margin) of its pair, which is known only after the whole pair went through
the output layer: so that goes over the labels twice, and no logits are kept in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from . import LossParts
from .linear import fused_linear_loss

if TYPE_CHECKING:
    from ...pipelines.base import Settings


@dataclass
class ReferenceRows:
    """Of each pair in a micro-batch the reference model's log-probabilities [pairs, 2], chosen then rejected, nats;
    ``counts``: labels of each sequence [2·pairs], in the order of the labels."""

    logprobs: torch.Tensor
    counts: list[int]


def label_losses(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Σ w·cross-entropy, differentiable; the cross-entropies [n], detached) over hidden [n, H]; w [n] is 1 if None."""
    losses = torch.empty(len(labels), dtype=torch.float64, device=hidden.device)

    def chunk(logits: torch.Tensor, rows: slice, want_grad: bool) -> tuple[torch.Tensor, torch.Tensor]:
        target = labels[rows, None]
        normaliser = torch.logsumexp(logits, 1, keepdim=True)
        loss = (normaliser - logits.gather(1, target))[:, 0]
        losses[rows] = loss.double()
        scale = torch.ones_like(loss) if weights is None else weights[rows].to(loss.dtype)
        if want_grad:
            logits.sub_(normaliser).exp_()
            logits.scatter_add_(1, target, torch.full_like(logits[:, :1], -1.0)).mul_(scale[:, None])
        return loss * scale, loss[:, None]

    total, _ = fused_linear_loss(hidden, weight, bias, chunk, None, softcap)
    return total, losses


def dpo_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    reference: ReferenceRows,
    beta: float,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
) -> LossParts:
    """Σ of the loss over the pairs, nats; ``ce``: Σ cross-entropy over all labels, detached.

    hidden: [n, H] states at label − 1, a pair's chosen sequence before its rejected one; weight: [V, H]; labels: [n].
    """
    labels = labels.to(hidden.device).long()
    if sum(reference.counts) != len(labels) or len(reference.counts) != reference.logprobs.numel():
        raise ValueError(f"{len(labels)} labels, {len(reference.counts)} sequences of {sum(reference.counts)} labels")
    with torch.no_grad():
        _, losses = label_losses(hidden, weight, labels, bias, softcap)
        counts = torch.tensor(reference.counts, device=labels.device)
        which = torch.repeat_interleave(torch.arange(len(counts), device=labels.device), counts)
        sums = torch.zeros(len(counts), dtype=torch.float64, device=labels.device).index_add_(0, which, losses)
        gain = -sums.view(-1, 2) - reference.logprobs.to(sums)  # log π − log π_ref of each answer
        margin = beta * (gain[:, 0] - gain[:, 1])
        value = torch.nn.functional.softplus(-margin).sum()
        push = beta * torch.sigmoid(-margin)  # −∂loss/∂log π of the chosen answer, +∂loss/∂log π of the rejected
        weights = torch.stack([push, -push], 1).reshape(-1)[which]
    if torch.is_grad_enabled():
        slope, _ = label_losses(hidden, weight, labels, bias, softcap, weights)
        value = value + (slope - slope.detach()).to(value)
    return LossParts(value, losses.sum())


def objective(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None,
    teacher: ReferenceRows,
    settings: Settings,
) -> LossParts:
    """The loss at the pipeline's β (see ``kd.losses.Objective``)."""
    return dpo_loss(hidden, weight, labels, teacher, settings.options["beta"], bias, settings.softcap)
