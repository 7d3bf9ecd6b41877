"""Offline on-policy distillation (arXiv 2604.13010): the teacher's distributions over answers that a student sampled.

A student that another pipeline trained (``options.sampler``, default the baseline; ``options.student``, default the
same student) answers the training prompts once; the teacher scores those answers once. Both artifacts serve every seed
and setting, so they have an N and an N*; what the sampling student cost is part of what they cost.
"""

from __future__ import annotations

from ..config.base import Section
from .kd import Kd


class OfflinePolicyOptions(Section):
    """``options`` of a pipeline of this kind."""

    sampler: str | None = None  # pipeline whose student samples; null: the baseline
    student: str | None = None  # which student samples; null: the one that is trained


class OfflinePolicy(Kd):
    kind = "offline_policy"
    rows = "teacher_generation"
    samples = True
    section = OfflinePolicyOptions


PIPELINE = OfflinePolicy()
