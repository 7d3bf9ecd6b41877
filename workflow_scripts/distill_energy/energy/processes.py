"""Whose process is it? The stage's tree through /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable

from .identity import stat_fields

INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO in the kernel


def parents() -> dict[int, int]:
    """Parent of every process that /proc shows."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := stat_fields(int(name))):
            found[int(name)] = int(fields[1])
    return found


def in_tree(pid: int, root: int, parent: dict[int, int]) -> bool:
    while pid in parent:
        if pid == root:
            return True
        pid = parent[pid]
    return pid == root


def foreign(pids: Iterable[int], root: int, at_start: set[int]) -> list[int]:
    """Processes among ``pids`` (as NVML lists them) that are not of the tree of ``root``.

    In a container NVML lists the host's process ids, which mean nothing here: then only processes that were on the
    device when the stage began are called foreign.
    """
    pids = list(pids)
    if not pids:
        return []
    parent = parents()
    mine = {pid for pid in pids if in_tree(pid, root, parent)}
    try:
        whole = os.readlink("/proc/self/ns/pid") == INITIAL_PID_NAMESPACE
    except OSError:
        whole = False
    if whole:
        return sorted(set(pids) - mine)
    return sorted(pid for pid in set(pids) - mine if pid in parent or pid in at_start)
