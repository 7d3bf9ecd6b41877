"""From a dataset's specification to its source: the same conversations on every machine."""

from __future__ import annotations

from typing import Any

from ..errors import UserError
from .generated import train_stream, validation_stream
from .hub import open_rows
from .source import Source


def open_source(spec: dict[str, Any], log=print) -> Source:
    """The source that a dataset's specification (``config/sources.py``) names."""
    kind = spec["source"]
    seed = spec.get("seed", 0)
    if kind == "generated":
        families = spec.get("families")
        return Source(train_stream(seed, families), validation_stream(seed, families))
    if kind in ("hub", "files"):
        return open_rows(spec, log)
    raise UserError(f"dataset source {kind!r} is not one of generated, hub, files")
