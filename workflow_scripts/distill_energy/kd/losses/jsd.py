"""Generalised Jensen-Shannon divergence between teacher P and student Q, both soft-maxed at T, summed over tokens.

JSD_β(P ‖ Q) = β·KL(P ‖ M) + (1 − β)·KL(Q ‖ M) with M = β·P + (1 − β)·Q (Agarwal et al. 2024, arXiv 2306.13649, eq. 1).
β = 0 stands for KL(P ‖ Q) and β = 1 for KL(Q ‖ P), the limits of JSD_β/β and JSD_β/(1 − β), as in that paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...models.logits import LogitRule
from . import LossParts
from .linear import LossOutput, fused_linear_loss

if TYPE_CHECKING:
    from ...pipelines.base import Settings


@dataclass
class LiveTeacherRows:
    """The teacher's states [n, H] before n labels, and its output layer; logits are made a chunk of rows at a time."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    rule: LogitRule

    def __len__(self) -> int:
        return len(self.hidden)

    def logits(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """[rows, V] in ``dtype``."""
        out = torch.nn.functional.linear(self.hidden[rows], self.weight, self.bias).to(dtype)
        return self.rule.apply(out)


def divergence(log_p: torch.Tensor, log_q: torch.Tensor, beta: float) -> torch.Tensor:
    """JSD_β [n] of log-probabilities [n, V]: P the teacher's, Q the student's."""

    def kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first.exp() * (first - second)).sum(1)

    if beta == 0:
        return kl(log_p, log_q)
    if beta == 1:
        return kl(log_q, log_p)
    mixture = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return beta * kl(log_p, mixture) + (1 - beta) * kl(log_q, mixture)


def jsd_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    teacher: LiveTeacherRows,
    beta: float,
    temperature: float = 1.0,
    chunk_rows: int | None = None,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
) -> LossOutput:
    """Σ JSD_β over n tokens.

    hidden: [n, H] student states at label − 1; weight: [V, H]; labels: [n], for the cross-entropy that is logged;
    teacher: n rows in the same order. Of two output layers the rows that both have are compared, and renormalised.
    ``.parts``: ``ce`` and ``kl`` (here the divergence, nats), detached sums.
    """
    if not len(teacher) == len(labels) == len(hidden):
        raise ValueError(f"{len(hidden)} states, {len(labels)} labels and {len(teacher)} teacher rows")
    labels = labels.to(hidden.device).long()
    shared = min(weight.shape[0], teacher.weight.shape[0])

    def chunk(logits: torch.Tensor, rows: slice, want_grad: bool) -> tuple[torch.Tensor, torch.Tensor]:
        ce = torch.nn.functional.cross_entropy(logits, labels[rows], reduction="none")
        with torch.no_grad():
            log_p = torch.log_softmax(teacher.logits(rows, logits.dtype)[:, :shared] / temperature, 1)
        own = logits.detach().clone().requires_grad_(want_grad)
        with torch.enable_grad():
            loss = divergence(log_p, torch.log_softmax(own[:, :shared] / temperature, 1), beta)
            total = loss.sum()
        if want_grad:
            logits.copy_(torch.autograd.grad(total, own)[0])
        loss = loss.detach()
        return loss, torch.stack([ce, loss], 1)

    loss, parts = fused_linear_loss(hidden, weight, bias, chunk, chunk_rows, softcap)
    parts = parts.detach()
    return LossOutput(loss, {"ce": parts[0], "kl": parts[1]}, len(labels))


def objective(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None,
    teacher: LiveTeacherRows,
    settings: Settings,
) -> LossParts:
    """The divergence at the pipeline's β and T (see ``kd.losses.Objective``)."""
    beta, temperature = settings.options["beta"], settings.temperature
    result = jsd_loss(hidden, weight, labels, teacher, beta, temperature, bias=bias, softcap=settings.softcap)
    return LossParts(result.loss, result.parts["ce"], result.parts["kl"])
