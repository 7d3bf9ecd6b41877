"""Supervised fine-tuning on the data set's own answers."""

from __future__ import annotations

from .base import Pipeline


class Sft(Pipeline):
    kind = "sft"


PIPELINE = Sft()
