"""The training choices of the paper's harness, each of which can be switched on alone to measure its effect.

``training.reference_faithful: true`` switches on all of them; a mapping switches on the ones it names. Where kinds of
pipelines were treated differently there, they are here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config.training import Reference

#: Distillation evaluated this many times as often as fine-tuning.
KD_EVALUATES_TIMES = 16


@dataclass(frozen=True)
class Choices:
    """What the loop asks. With nothing switched on, the answers are this project's."""

    on: Reference
    kind: str

    @property
    def scale_parameter(self) -> bool:
        """Adafactor's step in units of a tensor's size. There: in distillation only, about a 50-fold smaller step."""
        return self.kind == "kd" if self.on.scale_parameter_by_kind else True

    def precision(self, asked: str) -> str:
        """There: bfloat16 weights without a float32 copy, so that most small updates are rounded away."""
        return "bf16" if self.on.bf16_weights else asked

    def eval_every(self, every: int) -> int:
        """There: distillation evaluated 16 times as often."""
        return max(1, every // KD_EVALUATES_TIMES) if self.on.frequent_evaluation and self.kind == "kd" else every

    def epsilon(self, epsilon: float) -> float:
        """There: any fall of the evaluation loss counts."""
        return 0.0 if self.on.no_epsilon else epsilon

    @property
    def stops(self) -> bool:
        """There: distillation's early stopping left only the inner of two loops, and training went on."""
        return not (self.on.no_stop_in_kd and self.kind == "kd")

    @property
    def keeps_best(self) -> bool:
        """There: the last weights were kept."""
        return not self.on.last_weights

    def schedule_divisor(self, micro_batches: int) -> int:
        """There: the cosine's length was counted in micro-batches but advanced by optimiser steps."""
        return micro_batches if self.on.schedule_in_micro_batches else 1

    def divisor(self, labels: int, mean_of_means: int) -> int:
        """There: the mean of the micro-batches' means, which weighs a label by how few its micro-batch has."""
        return mean_of_means if self.on.mean_of_means else labels


def choices(training: dict[str, Any], kind: str) -> Choices:
    """From the parameters of a stage."""
    asked = training.get("reference_faithful")
    if isinstance(asked, dict):
        return Choices(Reference.model_validate({k: v for k, v in asked.items() if v is not None}), kind)
    return Choices(Reference.all(bool(asked)), kind)
