"""One benchmark's score, and whether a teacher's stands above chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Z_ABOVE_CHANCE = 1.645  # one-sided 95 %


@dataclass(frozen=True)
class Score:
    """One benchmark's result of one model. ``items``: item id → score, where the artifact has them."""

    benchmark: str
    score: float | None
    stderr: float | None = None
    chance: float | None = None
    n: int | None = None
    status: str = "ok"
    reason: str | None = None
    items: Any = None  # Items, or a mapping of item id → score


def above_chance(score: Score) -> bool:
    """Whether a teacher's score stands above chance (and above zero), by one-sided 95 % where it has an error."""
    if score.score is None:
        return False
    margin = Z_ABOVE_CHANCE * (score.stderr or 0.0)
    return score.score > 0 and score.score - margin > (score.chance or 0.0)
