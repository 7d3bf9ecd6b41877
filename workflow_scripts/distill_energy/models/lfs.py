"""Pointers of git LFS in the place of the files that they name."""

from __future__ import annotations

from pathlib import Path


def is_pointer(path: Path) -> bool:
    """Whether a file is a pointer, which ``git lfs pull`` would replace."""
    with open(path, "rb") as handle:
        return handle.read(40).startswith(b"version https://git-lfs")
