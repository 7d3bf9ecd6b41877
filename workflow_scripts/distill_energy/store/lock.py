"""A lock by artifact: a stage never runs twice at once.

After a workflow's main process is killed, its cluster jobs live on; a second workflow would start duplicates beside
them. The duplicate waits here and then finds the artifact made.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError

#: A file system that has no ``flock``: some network ones, which may still have POSIX locks.
UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def _lock(file: Any) -> None:
    """The exclusive lock, or BlockingIOError if somebody has it. Raises UserError where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError(*error.args) from None
        place = os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}")
        raise UserError(
            f"{place}: its file system has no locks ({error.strerror}); two jobs could make one artifact at once. Put "
            "results on one that has (NFS v4, Lustre with -o flock, a local disk)"
        ) from None


def take(file: Any, waiting: Callable[[], None], poll_s: float) -> bool:
    """Take the exclusive ``flock`` of an open file, however long that lasts. Returns whether another process had it;
    ``waiting`` is called once then. The kernel drops the lock when its holder dies, however it dies."""
    waited = False
    while True:
        try:
            _lock(file)
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
