"""Data sources: each gives a stream of training and one of validation conversations, the same on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from .chat import Conversation


@dataclass
class Source:
    """Two streams in a fixed order, and counts of what was left out on the way (filled while streaming)."""

    train: Iterator[Conversation]
    validation: Iterator[Conversation]
    counts: dict[str, int] = field(default_factory=dict)


def open_source(spec: dict[str, Any], log=print) -> Source:
    """The source that a dataset's specification (``config/sources.py``) names."""
    kind = spec["source"]
    seed = spec.get("seed", 0)
    if kind == "generated":
        from .generated import train_stream, validation_stream

        families = spec.get("families")
        return Source(train_stream(seed, families), validation_stream(seed, families))
    if kind in ("hub", "files"):
        from .hub import open_rows

        return open_rows(spec, log)
    raise UserError(f"dataset source {kind!r} is not one of generated, hub, files")
