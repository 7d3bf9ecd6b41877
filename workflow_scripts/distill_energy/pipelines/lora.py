"""Supervised fine-tuning of low-rank adapters (Hu et al. 2021): what a new kind of pipeline takes.

``options`` may set ``rank``, ``alpha``, ``dropout`` and ``targets``; they win over ``training.lora``.
"""

from __future__ import annotations

from ..config.training import Lora as Adapter
from ..config.training import Training
from .base import Pipeline, Settings, checked


class Lora(Pipeline):
    kind = "lora"

    def lora(self, settings: Settings, training: Training) -> Adapter:
        shared = training.lora.model_dump() if training.lora else {}
        return checked(self.kind, Adapter, shared | settings.options)


PIPELINE = Lora()
