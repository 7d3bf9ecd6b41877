"""Whether a stage fits a card's memory, from counts of parameters: a lower bound, activations left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..config.training import Training

#: Bytes of a parameter and its gradient in training, by precision; AdamW's two moments take as much again.
TRAINING_BYTES = {"bf16_autocast": 8, "fp32": 8, "bf16": 4, "bf16_stochastic": 4}
USABLE = 0.92  # of a card, beside the driver and the allocator


def training_bytes(training: Training) -> float:
    """Bytes of a parameter in training: weight, gradient, AdamW's moments; with adapters the weight alone."""
    each = TRAINING_BYTES[training.precision]
    if training.lora:
        return each / 2
    return 2 * each if training.optimizer == "adamw" else each


def weight_bytes(dtype: str | None) -> float:
    """Bytes of a parameter in inference."""
    return 4 if dtype == "float32" else 2


def needed(stage: str, params: Mapping[str, Any], parameters: float) -> float:
    """Bytes that a stage's model takes at least."""
    if stage == "student_training" and "training" in params:
        return parameters * training_bytes(Training.model_validate(params["training"]))
    return parameters * weight_bytes(params.get("dtype"))


def too_large(stage: str, params: Mapping[str, Any], parameters: float, size: float, where: str) -> str | None:
    """Why a stage does not fit ``size`` bytes of ``where``, and the parallelism that would; None if it may fit."""
    bytes_ = needed(stage, params, parameters)
    if bytes_ <= USABLE * size:
        return None
    return f"does not fit: {parameters / 1e9:.1f} B parameters take {bytes_ / 1e9:.1f} GB at least, {where} has " + (
        f"{size / 1e9:.1f}; {parallelism(stage, bytes_, size)}"
    )


def parallelism(stage: str, bytes_: float, size: float, least: int = 2) -> str:
    """What spreads a stage over enough cards."""
    cards = max(least, math.ceil(bytes_ / (USABLE * size)))
    if stage == "student_training":
        return f"training.sharding: full with processes: {cards} would, or training.lora"
    if stage == "teacher_generation":
        return f"generation.tensor_parallel: {cards} would"
    return f"{cards} cards would: the stage spreads its layers over all that it sees"
