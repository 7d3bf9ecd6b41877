"""Distillation from cached teacher distributions (Hinton et al. 2015): α·CE + (1 − α)·T²·KL(teacher ‖ student)."""

from __future__ import annotations

from ..config.params import PipelineParams
from ..errors import UserError
from .base import Pipeline, Settings


class Kd(Pipeline):
    kind = "kd"
    needs = "teacher_logits"
    loss = "kd"

    def settings(self, raw: PipelineParams) -> Settings:
        settings = super().settings(raw)
        for key in ("alpha", "temperature"):
            if getattr(settings, key) is None:
                raise UserError(f"pipeline {self.kind}: {key} is missing")
        return settings


PIPELINE = Kd()
