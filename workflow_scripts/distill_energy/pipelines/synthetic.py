"""Supervised fine-tuning on answers that the teacher wrote (sequence-level distillation, Kim & Rush 2016)."""

from __future__ import annotations

from .base import Pipeline


class Synthetic(Pipeline):
    kind = "synthetic"
    needs = "teacher_generation"
    rows = "teacher_generation"


PIPELINE = Synthetic()
