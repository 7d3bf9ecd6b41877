"""Weight-only quantisation, the alternative to distilling: no training, the same model in int8 or int4.

``options.of`` says what is quantised: the teacher, or the students that another pipeline of the study trained, whose
training is then part of what the quantised student cost. Rounding to nearest by torchao needs no calibration data.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..config.base import Section
from ..config.params import PipelineParams
from ..errors import UserError
from .base import Pipeline, Settings

TEACHER = "teacher"


class QuantisedOptions(Section):
    """``options`` of a pipeline of this kind."""

    of: str = Field(TEACHER, description="`teacher`, or the pipeline whose students are quantised")
    bits: Literal[4, 8] = 8
    group_size: int | None = Field(
        None, ge=32, le=256, description="weights that share a scale; null: a row's with 8 bits, 32 with 4"
    )
    method: str = Field("rtn", description="rtn: rounding to nearest (torchao)")


class Quantised(Pipeline):
    kind = "quantised"
    quantises = True
    section = QuantisedOptions

    def settings(self, raw: PipelineParams) -> Settings:
        settings = super().settings(raw)
        if (method := settings.options["method"]) != "rtn":
            raise UserError(
                f"pipeline {self.kind}: options.method: {method!r} is not made here (rtn is); a model that was "
                "quantised elsewhere can be the teacher (models: source: folder or hub)"
            )
        for key in ("alpha", "temperature"):
            if getattr(settings, key) is not None:
                raise UserError(f"pipeline {self.kind}: {key}: nothing is trained")
        return settings


PIPELINE = Quantised()
