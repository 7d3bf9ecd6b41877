"""Pareto front of energy (less is better) and quality (more is better)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """``on_front`` None: the point has no energy or no quality and takes no part."""

    on_front: bool | None
    dominated_by: tuple[str, ...] = ()


def front(points: Sequence[tuple[str, float | None, float | None]]) -> dict[str, Verdict]:
    """Verdicts by name of (name, energy, quality). A point is dominated by every point that is no worse in both and
    better in one; equal points do not dominate each other."""
    known = [(n, e, q) for n, e, q in points if e is not None and q is not None]
    verdicts = {name: Verdict(None) for name, _, _ in points}
    for name, energy, quality in known:
        better = tuple(n for n, e, q in known if e <= energy and q >= quality and (e < energy or q > quality))
        verdicts[name] = Verdict(not better, better)
    return verdicts
