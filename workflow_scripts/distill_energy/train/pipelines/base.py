"""What a kind of pipeline decides: the teacher artifact it needs, the rows it trains on, and its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ...config.training import Lora


@dataclass(frozen=True)
class Settings:
    """``params["pipeline"]`` of a stage: α, T and what a kind of its own may read from ``options``."""

    kind: str
    alpha: float | None = None
    temperature: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    ce_kernel: str = "chunks"  # what computes a cross-entropy (``losses.ce.choose_kernel``)


@dataclass
class LossParts:
    """Sums over the label rows of a micro-batch: what is minimised, and its parts for the trajectory (detached)."""

    total: Tensor
    ce: Tensor
    kl: Tensor | None = None


@dataclass(frozen=True)
class StudentFacts:
    """What a teacher's artifact is checked against."""

    inputs: dict[str, Path]
    vocabulary: int  # rows of the output layer
    tokenizer_hash: str | None  # None: not known
    log: Callable[[str], None]


class Pipeline:
    """Base of every kind, and supervised fine-tuning on the data set's own answers if nothing is overridden."""

    kind: str
    needs: str | None = None  # "teacher_logits", "teacher_generation" or None
    plain_ce: bool = True  # whether the loss is ``ce_loss``, for which there is more than one kernel
    rows: str = "data"  # role of the input whose train.parquet it trains on, and whose validation.parquet stops it

    def settings(self, raw: dict[str, Any]) -> Settings:
        """Read and check the pipeline's parameters. Raises UserError naming the key."""
        return Settings(raw["kind"], raw.get("alpha"), raw.get("temperature"), dict(raw.get("options") or {}))

    def lora(self, settings: Settings, training: dict[str, Any]) -> Lora | None:
        """The adapter to train instead of the weights, or None."""
        from ...config.training import Lora

        return Lora.model_validate(training["lora"]) if training.get("lora") else None

    def teacher(self, settings: Settings, student: StudentFacts) -> Any:
        """Open what the loss reads beside the data, checked against the student (as ``CachedTeacher``); or None."""
        return None

    def loss(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, teacher: Any, settings: Settings
    ) -> LossParts:
        """Sum over rows. ``hidden`` [n, H] at the positions before the labels, ``weight`` [V, H], ``labels`` [n]."""
        from ...losses.ce import ce_loss

        result = ce_loss(hidden, weight, labels, bias=bias, kernel=settings.ce_kernel)
        return LossParts(result.loss, result.parts["ce"])
