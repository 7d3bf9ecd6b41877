"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) of the teacher's answers over the student's.

A student that another pipeline trained (``options.sampler``, default the baseline) answers the training prompts once;
of each pair the teacher's answer is chosen, the student's own rejected. That same student is where the training starts
and its reference model, whose log-probabilities of the pairs are computed once. Answers and log-probabilities are
artifacts that serve every seed and β, so they have an N and an N*; what the first training cost is part of them.
"""

from __future__ import annotations

from pydantic import Field

from ..config.base import Section
from ..config.training import Training
from .base import Pipeline


class PreferenceOptions(Section):
    """``options`` of a pipeline of this kind."""

    beta: float = Field(0.1, gt=0, description="how strongly the student is kept near its reference")
    sampler: str | None = None  # pipeline whose student samples and is the reference; null: the baseline


class Preference(Pipeline):
    kind = "preference"
    needs = "teacher_generation"
    samples = True
    pairs = True
    loss = "dpo"
    section = PreferenceOptions

    def refuses(self, training: Training) -> str | None:
        if training.reference_faithful:
            return f"training.reference_faithful reproduces sft, kd and synthetic, not {self.kind}"
        return super().refuses(training)


PIPELINE = Preference()
