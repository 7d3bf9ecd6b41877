"""Inference energy of models, as measured in the evaluation stage: the j of T*."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..ledger.tables import rows_of

Cell = tuple[str, int]  # phase, batch size


def read_inference(folder: str | Path) -> dict[Cell, float]:
    """J/token by (phase, batch size) of an evaluation artifact, and J/answer under the phase ``answer``; unknown ones
    are left out."""
    rows = rows_of(f"{folder}/inference.parquet", ("phase", "batch_size", "j_per_token", "j_per_answer")) or []
    found = {}
    for row in rows:
        for phase, value in ((row["phase"], row.get("j_per_token")), ("answer", row.get("j_per_answer"))):
            if value is not None and math.isfinite(value) and value > 0:
                found[phase, int(row["batch_size"])] = float(value)
    return found


def answers_cell(cell: Cell) -> Cell:
    """The cell of J/answer at the same concurrency."""
    return "answer", cell[1]


#: What a served token costs comes before what an eager loop's does.
PHASES = ("served", "decode")


def common_cell(models: Sequence[Sequence[Mapping[Cell, float]]], phases: Sequence[str] = PHASES) -> Cell | None:
    """The largest batch size or concurrency, of the first of ``phases``, that every run of every model has, or None."""
    if not models or any(not runs for runs in models):
        return None
    shared = set.intersection(*(set(run) for runs in models for run in runs))
    for phase in phases:
        if found := [cell for cell in shared if cell[0] == phase]:
            return max(found, key=lambda cell: cell[1])
    return None
