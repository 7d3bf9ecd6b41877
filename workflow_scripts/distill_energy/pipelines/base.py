"""What a kind of pipeline decides: the teacher artifact it needs, the rows it trains on, and its loss by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ..config.base import Section
from ..config.params import PipelineParams
from ..config.training import Lora, Training
from ..errors import UserError


@dataclass(frozen=True)
class Settings:
    """A pipeline's parameters, checked: α, T and what a kind of its own may read from ``options``."""

    kind: str
    alpha: float | None = None
    temperature: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    ce_kernel: str = "chunks"  # what computes the loss (``choose_kernel`` and ``choose_triton`` of ``kd.losses.ce``)
    softcap: float | None = None  # of the student's logits (``models.logits.LogitRule``)


def checked(kind: str, section: type[Section], options: dict[str, Any]) -> Any:
    """``options`` as the kind's own ``section``. Raises UserError naming the key."""
    try:
        return section.model_validate(options)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(f"pipeline {kind}: options.{where}: {problem['msg']}") from None


class Pipeline:
    """Base of every kind, and supervised fine-tuning on the data set's own answers if nothing is overridden."""

    kind: str
    needs: str | None = None  # "teacher_logits", "teacher_generation" or None
    rows: str = "data"  # role of the input whose train.parquet it trains on, and whose validation.parquet stops it
    section: type[Section] | None = None  # what ``options`` may hold; None: what the kind reads of it
    samples: bool = False  # a student that another pipeline trained answers the prompts
    pairs: bool = False  # of the teacher's answers and those of the student from which it starts (with ``samples``)
    live_teacher: bool = False  # the teacher works in each training itself: nothing of it is kept
    quantises: bool = False  # nothing is trained: weights that are there are rounded
    loss: str = "ce"  # the file of ``kd/losses/`` whose ``objective`` is minimised

    def settings(self, raw: PipelineParams) -> Settings:
        """Read and check the pipeline's parameters. Raises UserError naming the key."""
        options = raw.options
        if self.section is not None:
            options = checked(self.kind, self.section, options).model_dump()
        return Settings(raw.kind, raw.alpha, raw.temperature, options)

    def refuses(self, training: Training) -> str | None:
        """Why the kind cannot train under these settings, or None."""
        if self.live_teacher and (training.processes or 1) * (training.nodes or 1) > 1:
            return f"{self.kind} trains in one process"
        return None

    def lora(self, settings: Settings, training: Training) -> Lora | None:
        """The adapter to train instead of the weights, or None."""
        return training.lora
