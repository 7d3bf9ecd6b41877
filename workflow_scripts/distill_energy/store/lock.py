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


@contextlib.contextmanager
def artifact_lock(folder: str | Path, say: Callable[[str], None], poll_s: float = 1.0) -> Iterator[bool]:
    """Hold the lock in ``folder``; yields whether another process had it first (so that its work may be done).

    The lock is an advisory ``flock`` that the kernel drops when its holder dies, however it dies. Shared folders need
    an NFS that carries locks between hosts (v4 does).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    with open(path, "a+", encoding="utf-8") as handle:
        waited = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waited:
                    say(f"waiting: {path} is held by {_holder(path)}")
                waited = True
                time.sleep(poll_s)
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
