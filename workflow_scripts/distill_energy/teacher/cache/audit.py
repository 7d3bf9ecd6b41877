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

from .certificate import temperature_key
from .weights import teacher_weights

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
    norm_ratio and quantisation_kl (mean generalised KL over head, sampled tokens and the rest's mass, exact against
    stored; for ``sampled`` it overstates the cost at T = 1, where weights come from counts and not from values).
    """
    import torch

    from ...losses.teacher import collate_teacher

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
        log_p = torch.log_softmax(z, -1)
        distance += float((log_p.exp() * (log_p - torch.log_softmax(s, -1))).nan_to_num(0.0).sum())
        for t in temperatures:
            log_p, q = torch.log_softmax(z / t, -1), torch.softmax(s / t, -1)
            part = (cached.logits[piece], cached.counts[piece], cached.tail_lse[piece])
            weights, stored, log_tail = teacher_weights(*part, spec, t)
            dense = (q - log_p.exp()) @ w
            if spec.method == "topk":
                sparse = _bucket_gradient(q, ids, weights, log_tail) @ w
            else:
                sparse = q.scatter_add(1, ids, -weights) @ w
            sums[t][0] += dense.T @ inputs[piece]
            sums[t][1] += sparse.T @ inputs[piece]
            kl[t] += float(_quantisation(log_p, ids, stored, log_tail, cached.counts[piece], spec.head).sum())
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
    import torch

    q_tail = (1 - q.gather(1, ids).sum(1, keepdim=True)).clamp_min(1e-12)
    out = q * (1 - torch.exp(log_tail_mass)[:, None] / q_tail)
    return out.scatter(1, ids, q.gather(1, ids) - p_head)


def _quantisation(log_p, ids, stored, log_tail_mass, counts, head: int):
    """Σ p log(p / p̃) − p + p̃ [r] over head tokens, sampled tokens and the mass that is left."""
    import torch

    exact = log_p.gather(1, ids)
    valid = torch.ones_like(exact, dtype=torch.bool)
    if exact.shape[1] > head:
        valid[:, head:] = counts > 0
    p, p_stored = torch.exp(exact) * valid, torch.exp(stored) * valid
    kl = (p * (exact - stored) - p + p_stored).where(valid, torch.zeros_like(p)).sum(1)
    rest = torch.ones_like(log_p, dtype=torch.bool).scatter_(1, torch.where(valid, ids, ids[:, :1]), False)
    if head == 0 and exact.shape[1] == 0:
        rest = torch.ones_like(rest)
    left = (log_p.exp() * rest).sum(1)
    left_stored = (torch.exp(log_tail_mass) - p_stored[:, head:].sum(1)).clamp_min(0)
    safe = (left > 1e-6) & (left_stored > 1e-6)
    term = left * (left.clamp_min(1e-12).log() - left_stored.clamp_min(1e-12).log()) - left + left_stored
    return kl + torch.where(safe, term, torch.zeros_like(term))
