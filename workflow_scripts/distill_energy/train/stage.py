"""The stage ``student_training``: one student, one pipeline, one seed. Imports nothing heavy at module level."""

from __future__ import annotations

from typing import Any

from ..config.params import TrainingParams
from ..context import Context


def main(ctx: Context[TrainingParams]) -> dict[str, Any]:
    """Train the student of ``ctx.params`` into ``ctx.out/model`` and ``ctx.out/trajectory.parquet``.

    Returns the sidecar's results. Raises UserError for bad input, a loss that is not finite, or too little memory.
    """
    with ctx.meter.phase("start"):
        from .run import train

    return train(ctx)
