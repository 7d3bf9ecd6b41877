"""The trajectory artifact: what energy bought at which step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..store.atomic import write_parquet

#: Columns of trajectory.parquet. A null joule is unknown; a null loss was not evaluated at that step.
COLUMNS = {
    "step": "int64",  # optimiser steps done
    "tokens": "int64",  # cumulative, attention mask 1, steps done again after a kill counted once
    "loss_tokens": "int64",  # cumulative labels
    "seconds": "float64",  # cumulative, of the steps and evaluations counted once
    "joules": "float64",  # cumulative gross, of every attempt, evaluation included
    "joules_eval": "float64",  # of which evaluation during training
    "train_loss": "float64",  # objective's mean over the step's labels, nats a token; of pairs: nats a pair
    "ce": "float64",  # cross-entropy on the training labels
    "kl": "float64",  # KL(teacher ‖ student) at T, without the factor T²
    "eval_loss": "float64",  # what stops this pipeline: cross-entropy, of pairs the loss a pair
    "gold_eval_loss": "float64",  # cross-entropy on the data set's own validation answers
    "lr": "float64",
    "grad_norm": "float64",  # before clipping
    "share_changed": "float64",  # share of sampled weights that the step changed
}


def write_trajectory(rows: list[dict[str, Any]], path: str | Path) -> None:
    """Write the rows (dicts by column, missing ones null) atomically."""

    def clean(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])
    data = {name: [clean(row.get(name)) for row in rows] for name in COLUMNS}
    write_parquet(path, pa.table(data, schema=schema))
