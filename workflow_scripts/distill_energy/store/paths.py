"""Paths that stay inside their root, whatever the names they are made of."""

from __future__ import annotations

import os
from pathlib import Path

from ..config.names import check_part
from ..errors import UserError


def inside(root: str | Path, *parts: str) -> Path:
    """``root``/``parts``, each part one component. Raises UserError for one that leads out of ``root``."""
    try:
        return Path(root).joinpath(*(check_part(part) for part in parts))
    except ValueError as error:
        raise UserError(f"{root}: {error}") from None


def check_inside(root: str | Path, path: str | Path) -> Path:
    """``path`` if it lies inside ``root``, links followed. Raises UserError; called before a folder is emptied."""
    real, base = os.path.realpath(path), os.path.realpath(root)
    if real == base or os.path.commonpath([real, base]) != base:
        raise UserError(f"{path}: does not lie inside {root}")
    return Path(path)
