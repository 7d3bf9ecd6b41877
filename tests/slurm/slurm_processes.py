"""Processes of a test cluster: found by a mark in their environment, ended without leaving any behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

# In the environment of every process of the cluster, daemons and jobs; SLURM_* would be dropped on the way.
MARK = "DISTILL_ENERGY_TEST_CLUSTER"


class ClusterError(RuntimeError):
    """The cluster cannot be had on this machine, or it did not come up; the message says why."""


class Unavailable(ClusterError):
    """This machine cannot have a test cluster (no root, no packages, another SLURM)."""


def die_with_parent() -> None:
    """Linux: SIGKILL this child when its parent's thread ends, so that no daemon outlives a killed test run."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def wait_until(ready: Callable[[], object], seconds: float, what: str, detail: Callable[[], str] = str) -> None:
    """Poll ``ready`` each 0.1 s; an exception counts as not ready. Raises ClusterError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if ready():
                return
        except (ClusterError, IndexError):
            pass
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not there after {seconds:g} s\n{detail()}")
        time.sleep(0.1)


def marked(root: str, node: str | None = None) -> list[int]:
    """Pids of the processes whose environment carries the cluster's mark (and, if given, the node's name)."""
    wanted = f"{MARK}={root}".encode()
    names = {f"{MARK}_NODE={node}".encode(), f"SLURMD_NODENAME={node}".encode()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = set((folder / "environ").read_bytes().split(b"\0"))
        except OSError:
            continue
        if wanted in variables and (node is None or names & variables):
            found.append(int(folder.name))
    return found


def command_of(pid: int) -> bytes:
    """A process's program and arguments; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def end(pid: int, grace: float = 5) -> None:
    """SIGTERM, then SIGKILL after ``grace`` seconds."""
    if grace:
        kill_quietly(pid, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and not reap(pid):
            time.sleep(0.05)
    kill_quietly(pid)
    reap(pid)


def kill_quietly(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def reap(pid: int) -> bool:
    """True if the process is gone; collects it if it was our child."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return not Path(f"/proc/{pid}").exists()
