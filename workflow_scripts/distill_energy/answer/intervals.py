"""Intervals: Student's t for means, Welch for differences, Fieller for ratios, bootstrap for quality.

All functions are pure. A sample of one gives no interval (``low``/``high`` are None) and says so in ``reason``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval. ``low``/``high`` None: there is none, for ``reason``."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str
    reason: str | None = None


def mean_interval(values: Sequence[float | None], confidence: float = 0.95, spread: "Spread | None" = None) -> Estimate:
    """Mean over seeds with Student's t interval, by the class's pooled ``spread`` where one is given.

    The percentile bootstrap is not used for energies: of two seeds it can never reach beyond the two values and covers
    the truth half of the time at a nominal 95 %. One unknown value makes the mean unknown.
    """
    n = len(values)
    if n == 0:
        return Estimate(None, None, None, 0, "none", "no run")
    if any(v is None or not math.isfinite(v) for v in values):
        return Estimate(None, None, None, n, "none", "the energy of a run is unknown")
    mean = math.fsum(values) / n
    if spread is not None:
        half = t_quantile(confidence, spread.df) * math.sqrt(spread.variance(mean, n))
        return Estimate(mean, mean - half, mean + half, n, "student_t_pooled")
    if n == 1:
        return Estimate(mean, None, None, 1, "none", "one seed gives no interval")
    half = t_quantile(confidence, n - 1) * standard_error(values)
    return Estimate(mean, mean - half, mean + half, n, "student_t")


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean, s/√n with the n−1 sample variance. Needs two values."""
    n = len(values)
    if n < 2:
        raise ValueError("a standard error needs two values")
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)


@lru_cache(maxsize=4096)
def t_quantile(confidence: float, df: float) -> float:
    """Two-sided quantile of Student's t. ``df`` may be infinite (normal)."""
    from scipy.special import ndtri, stdtrit

    level = 0.5 + confidence / 2
    return float(ndtri(level)) if math.isinf(df) else float(stdtrit(df, level))


def t_cdf(value: float, df: float) -> float:
    """Student's t distribution function. ``df`` may be infinite (normal)."""
    from scipy.special import ndtr, stdtr

    return float(ndtr(value)) if math.isinf(df) else float(stdtr(df, value))


@dataclass(frozen=True)
class Difference:
    """A difference of two independent means: value, standard error, degrees of freedom (Welch–Satterthwaite)."""

    value: float
    se: float | None
    df: float | None

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        if self.se is None or self.df is None:
            return None
        half = t_quantile(confidence, self.df) * self.se
        return self.value - half, self.value + half


#: Beyond so many seeds an arm, "more seeds" is no advice.
MOST_SEEDS = 50


def seeds_to_decide(
    found: Difference, seeds: int, confidence: float = 0.95, power: float = 0.8, most: int = MOST_SEEDS
) -> int | None:
    """Seeds an arm with which a difference of the size and spread seen would be told from none with ``power``.

    ``seeds``: an arm's now (the fewer). The power is that of the two-sided t test at ``confidence`` (non-central t;
    Cohen 1988, ch. 2), with a standard error that falls with the root of the seeds. None if more than ``most`` would be
    needed, or without a spread.
    """
    if not found.se or found.df is None or not found.value:
        return None
    from scipy.special import nctdtr

    for count in range(seeds + 1, most + 1):
        df = min(found.df + 2 * (count - seeds), 1e6)
        centre = abs(found.value) / (found.se * math.sqrt(seeds / count))
        if 1 - nctdtr(df, centre, t_quantile(confidence, df)) >= power:
            return count
    return None


def welch(first: Sequence[float], second: Sequence[float]) -> Difference:
    """mean(first) − mean(second) with Welch's standard error; none if either has fewer than two values."""
    value = math.fsum(first) / len(first) - math.fsum(second) / len(second)
    if len(first) < 2 or len(second) < 2:
        return Difference(value, None, None)
    parts = [(standard_error(x) ** 2, len(x) - 1) for x in (first, second)]
    variance = math.fsum(v for v, _ in parts)
    if variance == 0:
        return Difference(value, 0.0, float(sum(n for _, n in parts)))
    df = variance**2 / math.fsum(v**2 / n for v, n in parts)
    return Difference(value, math.sqrt(variance), df)


@dataclass(frozen=True)
class Spread:
    """A relative standard deviation pooled over groups of runs, with its degrees of freedom."""

    relative: float
    df: float

    def variance(self, mean: float, n: int) -> float:
        """Of the mean of ``n`` runs whose energy is ``mean``."""
        return (self.relative * mean) ** 2 / n


def pooled(groups: Sequence[Sequence[float]], level: float = 0.05) -> Spread | None:
    """The relative spread between seeds, pooled over groups of one execution class.

    None where fewer than two groups have two runs, where a group does not vary at all, or where Bartlett's test (1937)
    rejects at ``level`` that the groups share one relative variance.
    """
    found = []
    for values in groups:
        mean = math.fsum(values) / len(values) if values else 0.0
        if len(values) >= 2 and mean > 0:
            found.append((math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / mean**2, len(values) - 1))
    shared = shared_variance(found, level)
    return None if shared is None else Spread(math.sqrt(shared[0]), shared[1])


def shared_variance(found: Sequence[tuple[float, int]], level: float = 0.05) -> tuple[float, float] | None:
    """(pooled variance, degrees of freedom) of several (variance, degrees of freedom); None where there are fewer than
    two, one is 0, or Bartlett's test rejects at ``level`` that they estimate one."""
    from scipy.special import chdtrc

    if len(found) < 2 or any(v == 0 for v, _ in found):
        return None
    df = sum(n for _, n in found)
    variance = math.fsum(v * n for v, n in found) / df
    statistic = df * math.log(variance) - math.fsum(n * math.log(v) for v, n in found)
    correction = 1 + (math.fsum(1 / n for _, n in found) - 1 / df) / (3 * (len(found) - 1))
    if float(chdtrc(len(found) - 1, statistic / correction)) < level:
        return None
    return variance, float(df)


def difference(
    first: Sequence[float], second: Sequence[float], spread: Spread | None = None, paired: bool = False
) -> "Difference":
    """mean(first) − mean(second): with a pooled spread where there is one, else Welch's.

    ``paired``: the two are of the same seeds in the same order, and ``spread`` that of such pairs (``pairs_spread``).
    """
    if paired:
        return _of_pairs(first, second, spread)
    if spread is None:
        return welch(first, second)
    one, other = math.fsum(first) / len(first), math.fsum(second) / len(second)
    variance = spread.variance(one, len(first)) + spread.variance(other, len(second))
    return Difference(one - other, math.sqrt(variance), spread.df)


def _of_pairs(first: Sequence[float], second: Sequence[float], spread: Spread | None) -> Difference:
    """The mean of a − b over pairs, with Student's t, or with the spread of all pairs of the class."""
    apart = [a - b for a, b in zip(first, second, strict=True)]
    value, n = math.fsum(apart) / len(apart), len(apart)
    if spread is not None:
        return Difference(value, math.sqrt(spread.variance(math.fsum(first) / n, n)), spread.df)
    return Difference(value, standard_error(apart), n - 1.0) if n > 1 else Difference(value, None, None)


def pairs_spread(arms: Sequence[tuple[Sequence[float], Sequence[float]]], level: float = 0.05) -> Spread | None:
    """The spread between seeds of (a − b) / mean(a), pooled over pairs of arms; None as in ``pooled``.

    Arms of one baseline share it, so that each baseline's seeds count once in the degrees of freedom.
    """
    found = []
    for first, second in arms:
        mean = math.fsum(first) / len(first)
        if len(first) >= 2 and mean > 0:
            apart = [(a - b) / mean for a, b in zip(first, second, strict=True)]
            found.append((standard_error(apart) ** 2 * len(apart), len(apart) - 1))
    shared = shared_variance(found, level)
    if shared is None:
        return None
    once = sum(len(first) - 1 for first in {tuple(first) for first, _ in arms})
    return Spread(math.sqrt(shared[0]), float(once))


def widened(estimate: Estimate, bound: float | None, confidence: float = 0.95) -> Estimate:
    """An interval of seeds, with a meter error of at most ``bound`` (half-width, uniform) that all seeds share."""
    if estimate.low is None or estimate.value is None or not bound:
        return estimate
    half = math.hypot(estimate.high - estimate.value, t_quantile(confidence, math.inf) * bound / math.sqrt(3))
    return replace(estimate, low=estimate.value - half, high=estimate.value + half)


@dataclass(frozen=True)
class RatioSet:
    """Fieller's confidence set of a/b.

    ``bounded``: [low, high]. ``complement``: everything outside (low, high) — the denominator's sign is not settled.
    ``all``: every number is compatible.
    """

    kind: Literal["bounded", "complement", "all"]
    low: float | None
    high: float | None


def fieller(a: float, b: float, var_a: float, var_b: float, cov: float, quantile: float) -> RatioSet:
    """Fieller's (1954) set {ρ : (a − ρb)² ≤ q²(var_a − 2ρ cov + ρ² var_b)} for the ratio a/b of two means."""
    q2 = quantile * quantile
    lead = b * b - q2 * var_b
    middle = a * b - q2 * cov
    last = a * a - q2 * var_a
    disc = middle * middle - lead * last
    if lead == 0 or (lead < 0 and disc <= 0):
        return RatioSet("all", None, None)
    root = math.sqrt(max(disc, 0.0))
    ends = sorted(((middle - root) / lead, (middle + root) / lead))
    return RatioSet("bounded" if lead > 0 else "complement", ends[0], ends[1])


def bootstrap_means(values: Sequence[float], draws: int, rng) -> "object":
    """Bootstrap replicates of a mean over seeds, shape (draws,), deviations widened by √(n/(n−1)).

    Without the widening the bootstrap variance of n values is (n−1)/n of the unbiased one: half of it at two seeds.
    """
    data = np.asarray(values, dtype=float)
    n = len(data)
    centre = data.mean()
    if n == 1:
        return np.full(draws, centre)
    picks = rng.integers(0, n, size=(draws, n))
    return centre + (data[picks].mean(axis=1) - centre) * math.sqrt(n / (n - 1))
