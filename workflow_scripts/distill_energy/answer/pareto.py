"""Pareto front of energy (less is better) and quality (more is better)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Verdict:
    """``on_front`` None: the point has no energy or no quality and takes no part."""

    on_front: bool | None
    dominated_by: tuple[str, ...] = ()


MOST_NAMED = 20


def front(points: Sequence[tuple[str, float | None, float | None]]) -> dict[str, Verdict]:
    """Verdicts by name of (name, energy, quality). A point is dominated by every point that is no worse in both and
    better in one; equal points do not dominate each other. At most ``MOST_NAMED`` dominating points are named, those on
    the front first."""
    verdicts = {name: Verdict(None) for name, _, _ in points}
    known = [(n, e, q) for n, e, q in points if e is not None and q is not None]
    if not known:
        return verdicts
    names = [n for n, _, _ in known]
    energy, quality = (np.array([k[i] for k in known], dtype=float) for i in (1, 2))

    def better_than(i: int):
        no_worse = (energy <= energy[i]) & (quality >= quality[i])
        return np.flatnonzero(no_worse & ((energy < energy[i]) | (quality > quality[i])))

    better = [better_than(i) for i in range(len(known))]
    on_front = np.array([not len(b) for b in better])
    for name, dominating in zip(names, better, strict=True):
        ranked = [*dominating[on_front[dominating]], *dominating[~on_front[dominating]]]
        verdicts[name] = Verdict(not ranked, tuple(names[j] for j in ranked[:MOST_NAMED]))
    return verdicts
