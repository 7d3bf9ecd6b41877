"""What local sources hold, for versions: a model folder or a data file that was edited is another one.

Small files are hashed whole. Of large ones (weights) evenly spread blocks and the size are: another training changes
every block, a copy changes none, and 60 GB take a fraction of a second.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WHOLE = 32 << 20  # bytes up to which a file is hashed whole
BLOCKS, BLOCK = 64, 1 << 16
#: Of a model folder: what decides its outputs. Other files (READMEs, other formats' weights) may change.
MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt", ".gguf")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, or of its size and ``BLOCKS`` blocks of it."""
    size = path.stat().st_size
    state = hashlib.sha256(str(size).encode())
    with open(path, "rb") as handle:
        if size <= WHOLE:
            state.update(handle.read())
        else:
            for number in range(BLOCKS):
                handle.seek((size - BLOCK) * number // (BLOCKS - 1))
                state.update(handle.read(BLOCK))
    return state.hexdigest()


def digest_of(paths: Iterable[Path], root: Path) -> str:
    """One digest of several files, by name relative to ``root`` and content."""
    state = hashlib.sha256()
    for path in sorted(paths):
        state.update(f"{os.path.relpath(path, root)} {file_digest(path)}\n".encode())
    return state.hexdigest()[:16]


def content_of(source: dict[str, Any]) -> str | None:
    """The fingerprint of a model's or data set's local files (``config/sources.py``).

    None where the source names none, or where they are not there (the stage says so).
    """
    if source.get("source") not in ("folder", "files"):
        return None
    place = Path(source["path"]).expanduser()
    if source["source"] == "folder":
        found = [p for p in place.iterdir() if p.suffix in MODEL_FILES and p.is_file()] if place.is_dir() else []
        return digest_of(found, place) if found else None
    if place.is_dir():
        return digest_of((p for p in place.rglob("*") if p.is_file()), place)
    found = [Path(p) for p in glob.glob(str(place)) if os.path.isfile(p)]
    return digest_of(found, place.parent) if found else None
