"""Kinds of pipelines: one small file each. A new file here and a config entry make a new kind.

Imported by the planner: neither this package nor its files import torch, transformers or pyarrow at module level.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from .base import Pipeline

__all__ = ["Pipeline", "get", "kinds"]


@functools.cache
def kinds() -> tuple[str, ...]:
    """Every known kind: the files of this folder."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base"))


@functools.cache
def get(kind: str) -> Pipeline:
    """The pipeline of that kind. Raises KeyError (its argument a sentence) if there is none."""
    if kind not in kinds():
        raise KeyError(f"{kind!r} is not one of {', '.join(kinds())}")
    return importlib.import_module(f"{__name__}.{kind}").PIPELINE
