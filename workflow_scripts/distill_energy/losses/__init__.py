"""Losses, one file each. ``get("ce")``, ``get("kd")``, ``get("reference")``. torch is imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from ..errors import UserError

_REGISTRY = {"ce": ("ce", "ce_loss"), "kd": ("kd", "kd_loss"), "reference": ("reference", "reference_kd_loss")}


def get(name: str) -> Callable:
    """The loss function of that name. Raises UserError if there is none."""
    try:
        module, function = _REGISTRY[name]
    except KeyError:
        raise UserError(f"loss {name!r} is not one of {', '.join(sorted(_REGISTRY))}") from None
    return getattr(importlib.import_module(f".{module}", __name__), function)


def register(name: str, module: str, function: str) -> None:
    """Add a loss: ``module`` is absolute or relative to this package (``.my_loss``)."""
    _REGISTRY[name] = (module.removeprefix("."), function)


def names() -> list[str]:
    return sorted(_REGISTRY)
