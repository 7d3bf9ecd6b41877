"""Checkpoints that a kill at any instant leaves whole: temporary folder, fsync, rename; the newest two kept."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

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


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write ``state`` (tensors and plain values) as the checkpoint of ``step`` and drop all but the newest two."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".step-*"):
        shutil.rmtree(stale, ignore_errors=True)
    final = folder / f"step-{step:09d}"
    temporary = folder / f".{final.name}.{os.getpid()}"
    temporary.mkdir()
    torch.save(state, temporary / "state.pt")
    atomic.sync_file(temporary / "state.pt")
    atomic.sync_folder(temporary)
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    atomic.sync_folder(folder)
    for _, path in checkpoints(folder)[:-KEEP]:
        with contextlib.suppress(OSError):
            shutil.rmtree(path)
    return final


def load_latest(folder: Path, log: Any, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, on the CPU; None if there is none. An unreadable one is passed over.

    Raises UserError if the checkpoint belongs to other parameters.
    """
    import torch

    for _, path in reversed(checkpoints(folder)):
        try:
            state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        except Exception as error:
            log(f"checkpoint {path.name} cannot be read and is passed over ({type(error).__name__}: {error})")
            continue
        if state["identity"] != identity:
            raise UserError(f"{path}: belongs to other parameters; remove {folder} to start again")
        return state
    return None
