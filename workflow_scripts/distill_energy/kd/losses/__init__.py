"""Losses, one file each. A file whose ``objective`` a pipeline can name has the signature of :data:`Objective`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from ...pipelines.base import Settings
    from .teacher import TeacherTensors


@dataclass
class LossParts:
    """Sums over the label rows of a micro-batch: what is minimised, and its parts for the trajectory (detached)."""

    total: Tensor
    ce: Tensor
    kl: Tensor | None = None


#: objective(hidden [n, H] at the positions before the labels, weight [V, H], labels [n], bias [V] or None, the
#: teacher's rows or None, the pipeline's settings) → sums over the n rows.
Objective = Callable[["Tensor", "Tensor", "Tensor", "Tensor | None", "TeacherTensors | None", "Settings"], LossParts]


def get(name: str) -> Objective:
    """The objective of the file ``name`` of this folder. Raises UserError if there is none."""
    try:
        return importlib.import_module(f".{name}", __name__).objective
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != f"{__name__}.{name}":
            raise
        raise UserError(f"loss {name!r}: no such file in kd/losses, or it has no objective") from None


__all__ = ["LossParts", "Objective", "get"]
