"""Inference energy of models, as measured in the evaluation stage: the j of T*."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..ledger.tables import rows_of

Cell = tuple[str, int]  # phase, batch size


def read_inference(folder: str | Path) -> dict[Cell, float]:
    """J/token by (phase, batch size) of an evaluation artifact; unknown ones are left out."""
    rows = rows_of(f"{folder}/inference.parquet", ("phase", "batch_size", "j_per_token")) or []
    return {
        (row["phase"], int(row["batch_size"])): float(row["j_per_token"])
        for row in rows
        if row.get("j_per_token") is not None and math.isfinite(row["j_per_token"]) and row["j_per_token"] > 0
    }


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
