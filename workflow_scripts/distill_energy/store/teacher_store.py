"""A teacher store: a folder outside ``results/`` that several workflows share (a URL: see ``remote``).

Teacher artifacts live there as they would under ``results/``. A run that consumed one leaves a copy of its sidecar
under ``consumers/``, so that every workflow counts the reuse of all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from . import atomic
from .sidecar import TEACHER_STAGES, Sidecar, dump


def owner(root: str | Path) -> str:
    """What tells two workflows apart that trained the same run, each at its own cost: host and results folder."""
    return hashlib.sha256(f"{os.uname().nodename}:{os.path.realpath(root)}".encode()).hexdigest()[:12]


def copies(sidecar: Sidecar, root: str | Path) -> Iterator[tuple[str, str]]:
    """(path below the store, text) of the copy that a consumer leaves at each teacher artifact it read.

    A run that is measured again in the same results folder replaces its earlier copy.
    """
    for item in sidecar.consumes:
        if item.stage in TEACHER_STAGES:
            folder = f"consumers/{item.stage}/{item.name}/{item.version}"
            yield f"{folder}/{sidecar.version}-{owner(root)}.json", dump(sidecar)


def register(store: str | Path, sidecar: Sidecar, root: str | Path) -> list[Path]:
    """Leave a copy of a consumer's sidecar at each teacher artifact it read. Idempotent."""
    written = []
    for name, text in copies(sidecar, root):
        atomic.write_text(Path(store) / name, text)
        written.append(Path(store) / name)
    return written


def consumers(store: str | Path) -> Iterator[Path]:
    """Sidecar copies of every registered consumer."""
    yield from sorted((Path(store) / "consumers").glob("*/*/*/*.json"))
