"""A teacher store: a folder outside ``results/`` that several workflows share (a URL: see ``remote``).

Teacher artifacts live there as they would under ``results/``. A run that consumed one leaves a copy of its sidecar
under ``consumers/``, so that every workflow counts the reuse of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from . import atomic
from .sidecar import TEACHER_STAGES, Sidecar, dump


def copies(sidecar: Sidecar) -> Iterator[tuple[str, str]]:
    """(path below the store, text) of the copy that a consumer leaves at each teacher artifact it read."""
    for item in sidecar.consumes:
        if item.stage in TEACHER_STAGES:
            folder = f"consumers/{item.stage}/{item.name}/{item.version}"
            # The first attempt tells two workflows apart that trained the same run, each at its own cost.
            yield f"{folder}/{sidecar.version}-{sidecar.attempts[0].id}.json", dump(sidecar)


def register(store: str | Path, sidecar: Sidecar) -> list[Path]:
    """Leave a copy of a consumer's sidecar at each teacher artifact it read. Idempotent."""
    written = []
    for name, text in copies(sidecar):
        atomic.write_text(Path(store) / name, text)
        written.append(Path(store) / name)
    return written


def consumers(store: str | Path) -> Iterator[Path]:
    """Sidecar copies of every registered consumer."""
    yield from sorted((Path(store) / "consumers").glob("*/*/*/*.json"))
