"""The quality certificate: statistics that shards carry in their footers and that add up over shards. numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .rows import PackedRows
    from .spec import CacheSpec

BINS = 200
QUANTILES = {"p01": 0.01, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75}


def temperature_key(temperature: float) -> str:
    """JSON key of a temperature: ``1``, ``2.5``."""
    return f"{temperature:g}"


class ShardStats:
    """Sums over the response tokens of one shard."""

    def __init__(self, spec: "CacheSpec") -> None:
        self.spec = spec
        self.examples = self.tokens = 0
        self.loss = self.correct = self.entropy = 0.0
        self.mass_sum = np.zeros(len(spec.lse_temperatures))
        self.mass = np.zeros((len(spec.lse_temperatures), BINS), dtype=np.int64)
        self.audits: list[dict[str, Any]] = []

    def add(self, rows: "PackedRows") -> None:
        """Add one example's rows (with the statistics of ``encode_rows``)."""
        self.examples += 1
        self.tokens += len(rows)
        for name in ("loss", "correct", "entropy"):
            if name in rows.stats:
                setattr(self, name, getattr(self, name) + float(rows.stats[name].sum(dtype=np.float64)))
        if "head_mass" in rows.stats:
            mass = rows.stats["head_mass"]
            self.mass_sum += mass.sum(0, dtype=np.float64)
            index = np.clip((mass * BINS).astype(int), 0, BINS - 1)
            for i in range(mass.shape[1]):
                self.mass[i] += np.bincount(index[:, i], minlength=BINS)

    def to_json(self) -> dict[str, Any]:
        return {
            "examples": self.examples,
            "tokens": self.tokens,
            "loss_sum": self.loss,
            "correct_sum": self.correct,
            "entropy_sum": self.entropy,
            "head_mass_sum": self.mass_sum.tolist(),
            "head_mass_histogram": self.mass.tolist(),
            "audits": self.audits,
        }


def merge(spec: "CacheSpec", shards: list[dict[str, Any]], provenance: dict[str, Any], payload_bytes: int) -> dict:
    """One certificate from the footers' statistics.

    ``teacher``: mean loss (nats), accuracy and entropy over response tokens; ``head_mass``: mean and quantiles of the
    head's probability at each T (to 1/200); ``audit``: per T, over audited batches, the cosine and norm ratio of the
    batch gradient against the dense one (mean and worst), and the mean KL that quantisation costs.
    """
    tokens = sum(s["tokens"] for s in shards)
    out: dict[str, Any] = {
        "spec": spec.to_json(),
        "provenance": provenance,
        "examples": sum(s["examples"] for s in shards),
        "tokens": tokens,
        "bytes_per_token": payload_bytes / tokens if tokens else None,
        "teacher": {
            "loss": sum(s["loss_sum"] for s in shards) / tokens if tokens else None,
            "accuracy": sum(s["correct_sum"] for s in shards) / tokens if tokens else None,
            "entropy": sum(s["entropy_sum"] for s in shards) / tokens if tokens else None,
        },
        "head_mass": {},
        "audit": {},
    }
    if tokens and spec.head:
        histogram = np.sum([s["head_mass_histogram"] for s in shards], axis=0)
        mean = np.sum([s["head_mass_sum"] for s in shards], axis=0) / tokens
        for i, t in enumerate(spec.lse_temperatures):
            quantiles = {name: _quantile(histogram[i], q) for name, q in QUANTILES.items()}
            out["head_mass"][temperature_key(t)] = {"mean": float(mean[i]), **quantiles}
    audits = [a for s in shards for a in s["audits"]]
    for key in sorted({k for a in audits for k in a["temperatures"]}, key=float):
        found = [(a["tokens"], a["temperatures"][key]) for a in audits if key in a["temperatures"]]
        n = sum(count for count, _ in found)
        out["audit"][key] = {
            "batches": len(found),
            "tokens": n,
            "gradient_cosine": float(np.mean([v["cosine"] for _, v in found])),
            "gradient_cosine_worst": min(v["cosine"] for _, v in found),
            "norm_ratio": float(np.mean([v["norm_ratio"] for _, v in found])),
            "norm_ratio_worst": max((v["norm_ratio"] for _, v in found), key=lambda r: abs(r - 1)),
            "quantisation_kl": sum(c * v["quantisation_kl"] for c, v in found) / n if n else None,
        }
        out["audit"][key]["student_kl"] = (
            sum(a["tokens"] * a["student_kl"] for a in audits if key in a["temperatures"]) / n if n else None
        )
    return out


def _quantile(histogram: np.ndarray, q: float) -> float:
    """Quantile of values in [0, 1] from a histogram, linear within a bin."""
    total = histogram.sum()
    target = q * total
    cumulative = np.cumsum(histogram)
    i = int(np.searchsorted(cumulative, target))
    i = min(i, len(histogram) - 1)
    before = cumulative[i - 1] if i else 0
    inside = (target - before) / histogram[i] if histogram[i] else 0.0
    return float((i + inside) / len(histogram))
