"""Supervised fine-tuning of low-rank adapters (Hu et al. 2021): what a new kind of pipeline takes.

``options`` may set ``rank``, ``alpha``, ``dropout`` and ``targets``; they win over ``training.lora``.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from ..config.training import Lora as Adapter
from ..errors import UserError
from .base import Pipeline, Settings


class Lora(Pipeline):
    kind = "lora"

    def lora(self, settings: Settings, training: dict[str, Any]) -> Adapter:
        try:
            return Adapter.model_validate({**(training.get("lora") or {}), **settings.options})
        except ValidationError as error:
            problem = error.errors()[0]
            raise UserError(f"pipeline lora: options.{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None


PIPELINE = Lora()
