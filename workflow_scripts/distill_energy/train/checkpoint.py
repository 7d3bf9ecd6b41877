"""Checkpoints that a kill at any instant leaves whole: temporary folder, fsync, rename; the newest two kept."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..store import atomic

NAME = re.compile(r"step-(\d{9})$")
KEEP = 2


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Whole checkpoints under ``folder``, oldest first: (step, folder)."""
    if not folder.is_dir():
        return []
    found = [(int(m.group(1)), path) for path in folder.iterdir() if (m := NAME.match(path.name))]
    return sorted(found)


def part_name(part: int) -> str:
    """File of one process's part of a checkpoint."""
    return f"state-{part}.pt"


def digest_name(part: int) -> str:
    """File of its SHA-256."""
    return f"{part_name(part)}.sha256"


def save(
    folder: Path, step: int, state: dict[str, Any], part: int = 0, barrier: Callable[[], None] = lambda: None
) -> Path:
    """Write ``state`` (tensors and plain values) as the checkpoint of ``step`` and drop all but the newest two.

    Where each process holds a part of the weights, all of them call it with their ``part`` and a common ``barrier``;
    the checkpoint gets its name when every part is on disk.
    """
    final = folder / f"step-{step:09d}"
    temporary = folder / f".{final.name}"
    if part == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".step-*"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary.mkdir()
    barrier()
    torch.save(state, temporary / part_name(part))
    atomic.sync_file(temporary / part_name(part))
    atomic.write_text(temporary / digest_name(part), atomic.sha256(temporary / part_name(part)))
    barrier()
    if part != 0:
        return final
    atomic.sync_folder(temporary)
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    atomic.sync_folder(folder)
    for _, path in checkpoints(folder)[:-KEEP]:
        with contextlib.suppress(OSError):
            shutil.rmtree(path)
    return final


def load_latest(
    folder: Path, log: Callable[[str], None], identity: dict[str, Any], part: int = 0, last: float = math.inf
) -> dict[str, Any] | None:
    """The newest checkpoint up to step ``last`` that can be read, on the CPU; None if there is none. What cannot be
    read is passed over.

    Raises UserError if the checkpoint belongs to other parameters.
    """
    for step, path in reversed(checkpoints(folder)):
        if step > last:
            continue
        try:
            expected = path / digest_name(part)
            if expected.exists() and expected.read_text(encoding="ascii") != atomic.sha256(path / part_name(part)):
                raise ValueError("its content is not what was written")
            state = torch.load(path / part_name(part), map_location="cpu", weights_only=True)
        except Exception as error:
            log(f"checkpoint {path.name} cannot be read and is passed over ({type(error).__name__}: {error})")
            continue
        if state["identity"] != identity:
            raise UserError(f"{path}: belongs to other parameters; remove {folder} to start again")
        return state
    return None
