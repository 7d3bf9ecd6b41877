"""The stage ``student_training``: one student, one pipeline, one seed. Imports nothing heavy at module level."""

from __future__ import annotations

from typing import Any

RECIPE = 1  # raise when the output changes meaning


def main(ctx: Any) -> dict[str, Any]:
    """Train the student of ``ctx.spec.params`` into ``ctx.out/model`` and ``ctx.out/trajectory.parquet``.

    Returns the sidecar's results. Raises UserError for bad input, a loss that is not finite, or too little memory.
    """
    import torch

    from ..errors import UserError
    from .run import train

    try:
        return train(ctx)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(_out_of_memory(ctx, error)) from error
    except RuntimeError as error:
        if "not enough memory" in str(error) or "out of memory" in str(error):
            raise UserError(_out_of_memory(ctx, error)) from error
        raise


def _out_of_memory(ctx: Any, error: Exception) -> str:
    training = ctx.spec.params["training"]
    size = training.get("micro_batch_size") or training["batch_size"]
    return (
        f"{ctx.spec.name}: out of memory with micro-batches of {size}; lower training.micro_batch_size, or set "
        f"training.gradient_checkpointing, training.precision: bf16_stochastic or training.lora ({str(error)[:120]})"
    )
