"""Supervised fine-tuning of low-rank adapters (Hu et al. 2021): what a new kind of pipeline takes.

``options`` may set ``rank``, ``alpha``, ``dropout`` and ``targets``; they win over ``training.lora``.
"""

from __future__ import annotations

from typing import Any

from ..config.training import Lora as Adapter
from .base import Pipeline, Settings, checked


class Lora(Pipeline):
    kind = "lora"

    def lora(self, settings: Settings, training: dict[str, Any]) -> Adapter:
        return checked(self.kind, Adapter, {**(training.get("lora") or {}), **settings.options})


PIPELINE = Lora()
