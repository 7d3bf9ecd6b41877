"""Whose process is it? The stage's tree through /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable

from .identity import stat_fields

INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO in the kernel


def parents() -> dict[int, int]:
    """Parent of every process that /proc shows; empty where there is none (macOS)."""
    found = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit() and (fields := stat_fields(int(name))):
            found[int(name)] = int(fields[1])
    return found


def in_tree(pid: int, root: int, parent: dict[int, int]) -> bool:
    while pid in parent:
        if pid == root:
            return True
        pid = parent[pid]
    return pid == root


def related(one: int, other: int, parent: dict[int, int]) -> bool:
    """Whether one process is an ancestor of the other."""
    return in_tree(one, other, parent) or in_tree(other, one, parent)


TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def tree_cpu_s(root: int, parent: dict[int, int] | None = None) -> float:
    """CPU seconds of a process and all its descendants, ended and reaped children included (proc(5), 14 to 17)."""
    parent = parents() if parent is None else parent
    total = 0
    for pid in [root, *(pid for pid in parent if pid != root and in_tree(pid, root, parent))]:
        if fields := stat_fields(pid):
            total += sum(int(fields[index]) for index in (11, 12, 13, 14))
    return total * TICK_S


def busy_cpu_s() -> float:
    """CPU seconds that the host has spent on work since boot (all but idle and iowait; guests are in user already)."""
    with open("/proc/stat", encoding="ascii") as handle:
        user, nice, system, _, _, irq, softirq, steal = (int(x) for x in handle.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) * TICK_S


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
    return sorted(pid for pid in set(pids) - mine if pid in at_start)
