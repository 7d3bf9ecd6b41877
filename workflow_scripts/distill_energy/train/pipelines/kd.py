"""Distillation from cached teacher distributions (Hinton et al. 2015): α·CE + (1 − α)·T²·KL(teacher ‖ student)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import UserError
from .base import LossParts, Pipeline, Settings, StudentFacts

if TYPE_CHECKING:
    from torch import Tensor


class Kd(Pipeline):
    kind = "kd"
    needs = "teacher_logits"
    plain_ce = False

    def settings(self, raw: dict[str, Any]) -> Settings:
        settings = super().settings(raw)
        for key in ("alpha", "temperature"):
            if getattr(settings, key) is None:
                raise UserError(f"pipeline kd: {key} is missing")
        return settings

    def teacher(self, settings: Settings, student: StudentFacts) -> Any:
        from ..cached_teacher import CachedTeacher

        folder = student.inputs["teacher_logits"]
        return CachedTeacher(folder, student.vocabulary, settings.temperature, student.tokenizer_hash, student.log)

    def loss(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, teacher: Any, settings: Settings
    ) -> LossParts:
        from ...losses.kd import kd_loss

        result = kd_loss(hidden, weight, labels, teacher, settings.alpha, settings.temperature, bias=bias)
        return LossParts(result.loss, result.parts["ce"], result.parts["kl"])


PIPELINE = Kd()
