"""How far the cached distribution's gradient is from the dense one, on a sample for which both can be had. torch.

The stand-in for a student lies between the teacher's last hidden state and an inner layer's (three quarters up, read
through the teacher's own final norm), ``STUDENT_MIX`` of the way: about as far from the teacher as a small student at
work (``student_kl`` reports the KL at T = 1). A student farther away flatters every format.

The gradient compared is that of one weight matrix, a linear map applied to the student's last hidden state, accumulated
over the batch: Σ_t g_t h_tᵀ with g_t = Wᵀ(q − p̂). That is what reaches a student's body, where the sampling noise of
single tokens averages out; gradients of single logits would not show it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..losses.teacher import collate_teacher
from ..weights import teacher_weights
from .certificate import temperature_key

if TYPE_CHECKING:
    import torch

    from .rows import TeacherRows

STUDENT_MIX = 0.4
MAX_INPUTS = 1024  # columns of the hidden state that the compared gradient keeps


def audit_batch(
    teacher_logits,
    student_logits,
    student_hidden: "torch.Tensor",
    rows: "list[TeacherRows]",
    weight: "torch.Tensor",
    temperatures: tuple[float, ...] | None = None,
    chunk_rows: int = 64,
) -> dict[str, Any]:
    """Compare the batch gradient of KL(cached ‖ student) with that of KL(dense ‖ student).

    teacher_logits, student_logits: functions of a slice of rows giving fp32 [r, V]; student_hidden: [n, H];
    rows: the cache's rows of the same n tokens; weight: [V, H]. Returns tokens, student_kl and, per T, cosine,
    norm_ratio and quantisation_kl: the mean KL of the target that unrounded values of the same tokens give against the
    stored one (``topk``: with the tail as one outcome), in nats.
    """
    device = student_hidden.device
    cached = collate_teacher(rows, device)
    spec = cached.spec
    temperatures = temperatures or spec.lse_temperatures
    n = len(cached)
    inputs = student_hidden[:, :MAX_INPUTS].float()
    w = weight.float()
    sums = {t: [torch.zeros(w.shape[1], inputs.shape[1], device=device) for _ in range(2)] for t in temperatures}
    kl, distance = dict.fromkeys(temperatures, 0.0), 0.0
    for start in range(0, n, chunk_rows):
        piece = slice(start, min(start + chunk_rows, n))
        z, s = teacher_logits(piece).float(), student_logits(piece).float()
        ids = cached.ids[piece]
        exact = _exact_rows(z, ids, spec)
        empty = torch.zeros(2, len(ids), 0, device=device)
        log_p = torch.log_softmax(z, -1)
        distance += float((log_p.exp() * (log_p - torch.log_softmax(s, -1))).nan_to_num(0.0).sum())
        for t in temperatures:
            log_p, q = torch.log_softmax(z / t, -1), torch.softmax(s / t, -1)
            part = (cached.logits[piece], cached.counts[piece], cached.tail_lse[piece])
            weights, _, log_tail = teacher_weights(*part, spec, t)
            dense = (q - log_p.exp()) @ w
            if spec.method == "topk":
                sparse = _bucket_gradient(q, ids, weights, log_tail) @ w
            else:
                sparse = q.scatter_add(1, ids, -weights) @ w
            sums[t][0] += dense.T @ inputs[piece]
            sums[t][1] += sparse.T @ inputs[piece]
            unrounded, _, log_left = teacher_weights(exact[0], part[1], exact[1], spec, t)
            rest = torch.exp(torch.stack([log_left, log_tail]))[..., None] if spec.method == "topk" else empty
            kl[t] += float(_quantisation((unrounded, rest[0]), (weights, rest[1])).sum())
    out = {}
    for t, (dense, sparse) in sums.items():
        norm = float(dense.norm())
        out[temperature_key(t)] = {
            "cosine": float((dense * sparse).sum()) / max(norm * float(sparse.norm()), 1e-30),
            "norm_ratio": float(sparse.norm()) / max(norm, 1e-30),
            "quantisation_kl": kl[t] / max(n, 1),
        }
    return {"tokens": n, "student_kl": distance / max(n, 1), "temperatures": out}


def _bucket_gradient(q, ids, p_head, log_tail_mass):
    """d KL / d logits·T of the head plus one bucket: q − p on the head, q·(1 − tail mass / q(tail)) outside."""
    q_tail = (1 - q.gather(1, ids).sum(1, keepdim=True)).clamp_min(1e-12)
    out = q * (1 - torch.exp(log_tail_mass)[:, None] / q_tail)
    return out.scatter(1, ids, q.gather(1, ids) - p_head)


def _exact_rows(z, ids, spec) -> tuple["torch.Tensor", "torch.Tensor"]:
    """(logits [r, m], log-sum-exps [r, temperatures]) that a cache without rounding would hold; z: fp32 [r, V]."""
    k = spec.head
    top = z.amax(1, keepdim=True) if k else torch.logsumexp(z, 1, keepdim=True)
    x = z - top
    tail = x.scatter(1, ids[:, :k], float("-inf"))
    lse = torch.cat([torch.logsumexp(tail / t, 1, keepdim=True) for t in spec.lse_temperatures], 1)
    return x.gather(1, ids), lse


def _quantisation(exact, stored):
    """KL(exact ‖ stored) [r] of two targets: weights [r, m] and, if they don't sum to 1, the rest as one outcome."""
    (p, p_rest), (q, q_rest) = exact, stored
    p, q = torch.cat([p, p_rest], 1), torch.cat([q, q_rest], 1)
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    return torch.where(p > 0, p * (p.clamp_min(1e-38).log() - q.clamp_min(1e-38).log()), torch.zeros_like(p)).sum(1)
