"""Energy to reach a target quality, from the training trajectories: the ground of N* at equal quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..ledger.tables import columns_of

#: Losses that can be compared between pipelines come first: on the data set's own validation answers.
COMPARABLE = "gold_eval_loss"
OWN = "eval_loss"


@dataclass(frozen=True)
class Trajectory:
    """A run's cumulative joules and evaluation loss at its evaluation points (same length, rising joules)."""

    joules: tuple[float, ...]
    losses: tuple[float, ...]
    metric: str

    @property
    def best(self) -> float:
        return min(self.losses)


def read_trajectory(folder: str | Path) -> Trajectory | None:
    """The evaluation points of ``trajectory.parquet`` (step, tokens, joules, …, eval_loss); None without joules or
    losses."""
    table = columns_of(f"{folder}/trajectory.parquet", ("joules", COMPARABLE, OWN))
    if table is None or "joules" not in table:
        return None
    for metric in (COMPARABLE, OWN):
        points = [
            (float(j), float(v))
            for j, v in zip(table["joules"], table.get(metric, []), strict=False)
            if j is not None and v is not None and math.isfinite(j) and math.isfinite(v)
        ]
        if points:
            points.sort()
            return Trajectory(tuple(p[0] for p in points), tuple(p[1] for p in points), metric)
    return None


def energy_to_reach(trajectory: Trajectory, target: float) -> float | None:
    """Joules at which the running best loss first reaches ``target``, interpolated linearly; None if it never does."""
    best = math.inf
    before = None
    for joules, loss in zip(trajectory.joules, trajectory.losses, strict=True):
        if loss <= target:
            if before is None or before[1] <= loss:
                return joules
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (joules - before[0])
        if loss < best:
            best = loss
        before = (joules, best)
    return None


def common_target(groups: Sequence[Sequence[Trajectory]]) -> float | None:
    """The lowest loss that every run of every group reached."""
    runs = [t for group in groups for t in group]
    return max(t.best for t in runs) if runs else None


def comparable(groups: Sequence[Sequence[Trajectory | None]], same_validation: bool) -> str | None:
    """Why the losses of the groups cannot be compared, or None.

    ``same_validation``: both arms evaluate on the same validation answers (not the teacher's).
    """
    if any(not group or any(t is None for t in group) for group in groups):
        return "a run has no trajectory with joules and evaluation loss"
    metrics = {t.metric for group in groups for t in group}
    if metrics == {COMPARABLE}:
        return None
    if len(metrics) > 1:
        return "the trajectories hold different losses"
    return None if same_validation else "the two pipelines evaluate on different answers"
