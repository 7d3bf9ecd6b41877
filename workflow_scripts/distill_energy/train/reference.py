"""The training choices of the paper's harness, each of which can be switched on alone to measure its effect.

``training.reference_faithful: true`` switches on all of them; a mapping switches on the ones it names. Where kinds of
pipelines were treated differently there, they are here. What the harness does is read from its published code; two of
its habits follow from accumulating 16 micro-batches, whatever ``micro_batch_size`` is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config.training import Reference, Training
from .job import Job
from .learner import Learner
from .loop import Loop
from .schedule import learning_rate

#: Micro-batches that the harness accumulates before a step of the optimiser.
ACCUMULATION = 16


@dataclass(frozen=True)
class Choices:
    """What is asked of them. With nothing switched on, the answers are this project's."""

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
        """There: distillation counted micro-batches as steps, and so evaluated 16 times as often."""
        return max(1, every // ACCUMULATION) if self.on.frequent_evaluation and self.kind == "kd" else every

    def schedule_stretch(self) -> int:
        """There: the cosine's length was counted in micro-batches but advanced by optimiser steps."""
        return ACCUMULATION if self.on.schedule_in_micro_batches else 1

    def stops(self, losses: Sequence[float], stale: int, patience: int) -> bool:
        """Whether to stop after evaluations with these ``losses``, ``stale`` of them in a row without improvement.

        There: when a loss is above both of the two before it. In distillation that left only the inner of two loops,
        and training went on with the next epoch (here: with the next step).
        """
        if self.on.no_stop_in_kd and self.kind == "kd":
            return False
        if self.on.stop_on_two_rises:
            return len(losses) >= 3 and losses[-1] > max(losses[-3:-1])
        return stale >= patience

    @property
    def keeps_best(self) -> bool:
        """There: the last weights were kept."""
        return not self.on.last_weights

    def divisor(self, batch_labels: int, micro_labels: int, micro_batches: int) -> int:
        """What the sum over a micro-batch's labels is divided by before its gradient is added.

        There: in distillation the number of micro-batches, so that a step grows with the number of labels (gradient
        clipping then acts on every step); elsewhere the labels of the micro-batch, so that a label weighs by how few
        its micro-batch has.
        """
        if not self.on.unnormalised_loss:
            return batch_labels
        return micro_batches if self.kind == "kd" else micro_labels


def choices(training: Training, kind: str) -> Choices:
    """From the parameters of a stage."""
    asked = training.reference_faithful
    return Choices(asked if isinstance(asked, Reference) else Reference.all(bool(asked)), kind)


class ReferenceLoop(Loop):
    """The loop with the harness's choices in the places where it asks for its own."""

    def __init__(self, job: Job) -> None:
        self.choices = choices(job.training, job.params.pipeline.kind)
        super().__init__(job)

    def make_learner(self) -> Learner:
        asked = self.choices.precision(self.training.precision)
        return Learner(self.job, asked, self.choices.scale_parameter)

    @property
    def eval_every(self) -> int:
        return self.choices.eval_every(super().eval_every)

    def rate(self, step: int) -> float:
        t, stretch = self.training, self.choices.schedule_stretch()
        return learning_rate(step, t.learning_rate, t.warmup_steps, t.max_steps, t.schedule, stretch)

    def divisor(self, batch_terms: int, micro_labels: int, micro_batches: int) -> int:
        return self.choices.divisor(batch_terms, micro_labels, micro_batches)

    def stops(self) -> bool:
        return self.choices.stops(self.state.losses, self.state.stale, self.training.patience)

    def final_weights(self) -> Any:
        return super().final_weights() if self.choices.keeps_best else self.learner.export()


def loop_of(job: Job) -> Loop:
    """The training loop that a job asks for."""
    return (ReferenceLoop if job.training.reference_faithful else Loop)(job)
