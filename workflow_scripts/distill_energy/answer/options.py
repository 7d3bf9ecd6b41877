"""What the accounting needs of the configuration, as a plain value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Options:
    """``benchmarks``: those of Q, or None for every benchmark of the teacher."""

    baseline: str = "sft"
    inference_reference: str = "teacher"  # teacher | baseline | a student's name
    confidence: float = 0.95
    paired: bool = False  # the arms share their seeds' noise
    bootstrap: int = 2000
    drop_unusable: bool = False
    benchmarks: tuple[str, ...] | None = None
    estimate_error: float = 0.4  # arXiv 2509.22092: CodeCarbon's estimates were off by up to 40 %

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> "Options":
        """From a validated configuration's plain mapping (``Config.model_dump()`` or the YAML as read)."""
        config = config or {}
        section = config.get("accounting") or {}
        benchmarks = (config.get("evaluation") or {}).get("benchmarks")
        named = None
        if benchmarks:
            named = tuple(
                name
                for name, value in benchmarks.items()
                if value.get("in_quality", True) and value.get("kind") != "inference"
            )
        return cls(
            baseline=section.get("baseline", cls.baseline),
            inference_reference=section.get("inference_reference", cls.inference_reference),
            confidence=section.get("confidence", cls.confidence),
            paired=section.get("paired", cls.paired),
            bootstrap=section.get("bootstrap", cls.bootstrap),
            drop_unusable=section.get("drop_unusable_benchmarks", cls.drop_unusable),
            benchmarks=named,
            estimate_error=section.get("estimate_error", cls.estimate_error),
        )
