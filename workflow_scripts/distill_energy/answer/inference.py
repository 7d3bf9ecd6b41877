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


def common_cell(models: Sequence[Sequence[Mapping[Cell, float]]], phase: str = "decode") -> Cell | None:
    """The largest batch size of ``phase`` that every run of every model has; None if there is none."""
    if not models or any(not runs for runs in models):
        return None
    sets = [{cell for cell in run if cell[0] == phase} for runs in models for run in runs]
    shared = set.intersection(*sets)
    return max(shared, key=lambda cell: cell[1]) if shared else None
