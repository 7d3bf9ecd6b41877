"""Generalised knowledge distillation on the student's own answers (Agarwal et al. 2024, arXiv 2306.13649).

In each step the student answers the batch's prompts, the teacher scores those answers, and the student moves towards
the teacher by the generalised Jensen-Shannon divergence. Nothing of the teacher is kept, so there is nothing to reuse
and no N*: its energy is each run's own, and the comparison is campaign against campaign.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, field_validator

from ..config.base import Section
from ..config.params import PipelineParams
from .base import Pipeline, Settings


class OnPolicyOptions(Section):
    """``options`` of a pipeline of this kind."""

    beta: float = Field(0.5, ge=0, le=1, description="0: KL(teacher ‖ student), 1: KL(student ‖ teacher)")
    share: float = Field(1.0, ge=0, le=1, description="of the steps on the student's answers (λ); others on the data's")
    max_new_tokens: int = Field(64, gt=0)
    sampling_temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    engine: Literal["transformers"] = "transformers"

    @field_validator("engine", mode="before")
    @classmethod
    def _samples_here(cls, value: Any) -> Any:
        if value == "vllm":
            raise ValueError(
                "vllm is not for on_policy: it holds weights of its own in another process, and the student's change "
                "in every step (docs/alternatives.md)"
            )
        return value


class OnPolicy(Pipeline):
    kind = "on_policy"
    loss = "jsd"
    live_teacher = True
    section = OnPolicyOptions

    def settings(self, raw: PipelineParams) -> Settings:
        settings = super().settings(raw)
        return settings if settings.temperature is not None else replace(settings, temperature=1.0)


PIPELINE = OnPolicy()
