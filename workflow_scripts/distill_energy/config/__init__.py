"""What a user may write in ``config.yaml``. Names are loaded on first use: a meter needs none of the schema."""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {"Config": "schema", "load_config": "load", "parse_config": "load"}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
