"""Distillation on cached teacher distributions: α·CE + (1 − α)·T²·KL(teacher_T ‖ student_T), summed over tokens.

Hinton, Vinyals & Dean 2015 (arXiv 1503.02531), section 2: the factor T² keeps the soft part's gradient on the scale of
the hard part's. What stands for the teacher depends on the cache:

* head and sampled tail: Σ_j w_j (log p_j − log q_j) with Σ w = 1, whose gradient T·(q − w) estimates that of the full
  KL (w are the teacher's probabilities on the head, importance weights on the tail);
* ``topk``: the KL between teacher and student over K + 1 outcomes, the head's tokens and "any other" as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...errors import UserError
from . import LossParts
from .linear import LossOutput, fused_linear_loss
from .teacher import TeacherTensors

if TYPE_CHECKING:
    from ...pipelines.base import Settings


def kd_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    teacher: TeacherTensors,
    alpha: float,
    temperature: float,
    chunk_rows: int | None = None,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    kernel: str = "chunks",
) -> LossOutput:
    """Sum over n tokens of α·CE + (1 − α)·T²·KL.

    hidden: [n, H] student states at label − 1; weight: [V, H]; labels: [n]; teacher: n rows in the same order.
    ``.parts``: ``ce`` and ``kl`` (nats, without T²), detached sums; ``.loss`` differentiable sum.
    """
    if len(teacher) != len(labels) or len(labels) != len(hidden):
        raise ValueError(f"{len(hidden)} states, {len(labels)} labels and {len(teacher)} teacher rows")
    if not 0 <= alpha <= 1 or not temperature > 0:
        raise ValueError(f"alpha {alpha} must be in [0, 1] and temperature {temperature} above 0")
    labels = labels.to(hidden.device).long()
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        w_all, logp_all, log_tail_all = teacher.weights(temperature)
    bucket = teacher.spec.method == "topk"
    if kernel == "triton" and bucket:
        raise UserError("training.loss_kernel is triton, but a cache of method topk has none")

    def by_triton(logits: torch.Tensor, rows: slice, want_grad: bool) -> tuple[torch.Tensor, torch.Tensor]:
        from .triton_kernel import gradient_, statistics

        ids, w, logp = teacher.ids[rows], w_all[rows].to(logits.dtype), logp_all[rows].to(logits.dtype)
        target = labels[rows, None]
        picked, found = logits.gather(1, target), logits.gather(1, ids)
        top, total1, total_t = statistics(logits, temperature)
        ce = (torch.log(total1) + top - picked)[:, 0]
        logq = (found - top) / temperature - torch.log(total_t)
        kl = torch.where(w > 0, w * (logp - logq), torch.zeros_like(w)).sum(1)
        if want_grad:
            soft = (1 - alpha) * temperature
            scale_t = soft * w.sum(1, keepdim=True) / total_t
            places, values = torch.cat([ids, target], 1), torch.cat([-soft * w, torch.full_like(picked, -alpha)], 1)
            gradient_(logits, top, alpha / total1, scale_t, temperature, places, values)
        return alpha * ce + (1 - alpha) * temperature**2 * kl, torch.stack([ce, kl], 1)

    def chunk(logits: torch.Tensor, rows: slice, want_grad: bool) -> tuple[torch.Tensor, torch.Tensor]:
        ids, w, logp = teacher.ids[rows], w_all[rows].to(logits.dtype), logp_all[rows].to(logits.dtype)
        target = labels[rows, None]
        picked, found = logits.gather(1, target), logits.gather(1, ids)  # before logits are overwritten
        top = logits.amax(1, keepdim=True)
        logits.sub_(top)
        found = (found - top) / temperature
        e1, et = _exponentials(logits, temperature, exact=alpha == 1)
        total1, total_t = e1.sum(1, keepdim=True), et.sum(1, keepdim=True)
        ce = (torch.log(total1) + top - picked)[:, 0]
        logq = found - torch.log(total_t)
        kl = torch.where(w > 0, w * (logp - logq), torch.zeros_like(w)).sum(1)
        if bucket:
            # Tail by summing what is left, not as 1 − head: exact where the head holds nearly all.
            et.scatter_(1, ids, 0.0)
            tail_sum = et.sum(1, keepdim=True).clamp_min(torch.finfo(et.dtype).tiny)
            log_tail = log_tail_all[rows, None].to(logits.dtype)
            tail = torch.exp(log_tail)
            log_q_tail = torch.log(tail_sum) - torch.log(total_t)
            kl = kl + torch.where(tail > 0, tail * (log_tail - log_q_tail), torch.zeros_like(tail))[:, 0]
        loss = alpha * ce + (1 - alpha) * temperature**2 * kl
        if want_grad:
            soft = (1 - alpha) * temperature
            if bucket:
                q_head = torch.exp(logq)
                scale_t = soft * (1 / total_t - tail / tail_sum)  # q − p of "any other", shared by q
                at_ids = soft * (q_head - w)
            else:
                scale_t = soft * w.sum(1, keepdim=True) / total_t
                at_ids = -soft * w
            if e1 is et and not bucket:
                e1.mul_(alpha / total1 + scale_t)
            elif e1 is et:
                head = torch.exp(found) * (alpha / total1)  # zeroed in e1 by the bucket
                e1.mul_(alpha / total1 + scale_t)
                at_ids = at_ids + head
            else:
                e1.mul_(alpha / total1).addcmul_(et, scale_t.expand_as(et))
            e1.scatter_add_(1, ids, at_ids)
            e1.scatter_add_(1, target, torch.full_like(picked, -alpha))
            if e1.data_ptr() != logits.data_ptr():
                logits.copy_(e1)
        return loss, torch.stack([ce, kl], 1)

    fused = by_triton if kernel == "triton" else chunk
    loss, parts = fused_linear_loss(hidden, weight, bias, fused, chunk_rows, softcap)
    parts = parts.detach()
    return LossOutput(loss, {"ce": parts[0], "kl": parts[1]}, len(labels))


def objective(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None,
    teacher: TeacherTensors,
    settings: Settings,
) -> LossParts:
    """Distillation at the pipeline's α and T (see ``kd.losses.Objective``)."""
    alpha, temperature = settings.alpha, settings.temperature
    result = kd_loss(
        hidden,
        weight,
        labels,
        teacher,
        alpha,
        temperature,
        bias=bias,
        softcap=settings.softcap,
        kernel=settings.ce_kernel,
    )
    return LossParts(result.loss, result.parts["ce"], result.parts["kl"])


def _exponentials(x: torch.Tensor, temperature: float, exact: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(exp x, exp(x/T)) of x ≤ 0; the first overwrites x. One pass of exp for T = 1, 2 and 4, two otherwise and where
    the first is to be what cross-entropy alone makes of it to the last bit."""
    if temperature == 1:
        e = x.exp_()
        return e, e
    et = (x / temperature).exp_()
    if temperature in (2, 4) and not exact:
        torch.mul(et, et, out=x)
        return (x if temperature == 2 else x.mul_(x)), et
    return x.exp_(), et
