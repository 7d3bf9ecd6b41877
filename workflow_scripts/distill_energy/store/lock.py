"""A lock by artifact: a stage never runs twice at once.

After a workflow's main process is killed, its cluster jobs live on; a second workflow would start duplicates beside
them. The duplicate waits here and then finds the artifact made.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def take(file: Any, waiting: Callable[[], None], poll_s: float) -> bool:
    """Take the exclusive ``flock`` of an open file, however long that lasts. Returns whether another process had it;
    ``waiting`` is called once then. The kernel drops the lock when its holder dies, however it dies."""
    waited = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return waited
        except BlockingIOError:
            if not waited:
                waiting()
            waited = True
            time.sleep(poll_s)


@contextlib.contextmanager
def artifact_lock(folder: str | Path, say: Callable[[str], None], poll_s: float = 1.0) -> Iterator[bool]:
    """Hold the lock in ``folder``; yields whether another process had it first (so that its work may be done).

    The lock is advisory. Shared folders need an NFS that carries locks between hosts (v4 does).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    with open(path, "a+", encoding="utf-8") as handle:
        waited = take(handle, lambda: say(f"waiting: {path} is held by {_holder(path)}"), poll_s)
        handle.seek(0)
        handle.truncate()
        json.dump(
            {"host": socket.gethostname(), "pid": os.getpid(), "slurm_job_id": os.environ.get("SLURM_JOB_ID")}, handle
        )
        handle.flush()
        yield waited


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "another process"
    job = f", SLURM job {holder['slurm_job_id']}" if holder.get("slurm_job_id") else ""
    return f"process {holder.get('pid')} on {holder.get('host')}{job}"
