"""From cached rows to the teacher's weights at any temperature. torch.

With β = 1/T and f(β) = log Σ_{j outside the head} exp(β z_j): f is known at the cached temperatures, and
f(0) = log(V − K) for free. Between them f is interpolated by the polynomial through all those points; above the
largest β (T below the smallest cached one) it is held between the bounds that convexity gives.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import torch

    from .cache.spec import CacheSpec


def tail_lse_at(tail_lse: "torch.Tensor", spec: "CacheSpec", temperature: float, last_head: "torch.Tensor | float"):
    """Log-sum-exp [n] of what is outside the head at ``temperature``.

    tail_lse: [n, temperatures] as cached; last_head: [n] logit of the least probable head token (an upper bound of
    the tail's logits; 0 without a head).
    """
    for i, t in enumerate(spec.lse_temperatures):
        if math.isclose(t, temperature, rel_tol=1e-9):
            return tail_lse[:, i]
    rest = spec.vocab_size - spec.head
    if rest <= 0:
        return torch.full_like(tail_lse[:, 0], float("-inf"))
    betas = [1 / t for t in spec.lse_temperatures] + [0.0]
    beta = 1 / temperature
    values = torch.cat([tail_lse, torch.full_like(tail_lse[:, :1], math.log(rest))], 1)
    if beta <= betas[0]:
        out = torch.zeros_like(tail_lse[:, 0])
        for i, b in enumerate(betas):
            factor = math.prod((beta - c) / (b - c) for j, c in enumerate(betas) if j != i)
            out = out + factor * values[:, i]
    else:
        # f is convex: above the chord through the last two points, below f(β₀) + (β − β₀)·z_max.
        slope = (values[:, 0] - values[:, 1]) / (betas[0] - betas[1])
        lower = values[:, 0] + (beta - betas[0]) * slope
        upper = values[:, 0] + (beta - betas[0]) * last_head
        out = 0.5 * (torch.minimum(lower, upper) + upper)
    return torch.where(torch.isfinite(tail_lse[:, 0]), out, tail_lse[:, 0])


def teacher_weights(
    logits: "torch.Tensor", counts: "torch.Tensor", tail_lse: "torch.Tensor", spec: "CacheSpec", temperature: float
) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    """(weights [n, m], log-probabilities [n, m], tail log-mass [n]) of the teacher at ``temperature``.

    Head weights are the probabilities p_T. Tail weights estimate the tail's part of p_T: for draw j of the proposal
    π_j = mean over its temperatures of the tail's distribution, weight ∝ count_j · p_T(j) / π_j, scaled so that the
    tail sums to its mass, which is known exactly. So all weights of a row sum to 1 (``topk``: to the head's mass).
    """
    k = spec.head
    scaled = logits / temperature
    last_head = logits[:, k - 1] if k else 0.0
    tail = tail_lse_at(tail_lse, spec, temperature, last_head)
    log_z = torch.logaddexp(torch.logsumexp(scaled[:, :k], 1), tail) if k else tail
    logp = scaled - log_z[:, None]
    log_tail_mass = tail - log_z
    weights = torch.exp(logp)
    if spec.tail and logits.shape[1] > k:
        x = logits[:, k:]
        log_pi = torch.stack(
            [
                x / t - tail_lse[:, i : i + 1]
                for i, t in enumerate(spec.lse_temperatures)
                if t in spec.proposal_temperatures
            ]
        ).logsumexp(0)
        raw = x / temperature - log_pi + torch.log(counts.to(x.dtype))  # log 0 = −∞: padding
        share = torch.softmax(raw, 1)
        share = torch.nan_to_num(share, nan=0.0)  # a row whose tail is empty or beyond what is stored
        weights = torch.cat([weights[:, :k], share * torch.exp(log_tail_mass)[:, None]], 1)
    return weights, logp, log_tail_mass
