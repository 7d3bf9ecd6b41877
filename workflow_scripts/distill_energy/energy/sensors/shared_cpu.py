"""Dividing a CPU package's joules among stages that are measured on one host at the same time.

RAPL counts the whole package. Alone on the host a stage owns all of it. Beside others it owns the share of the busy
CPU time that its process tree had since the last tick, so that the stages' sum never exceeds the package.
"""

from __future__ import annotations

from ..exclusive import MeterRegister
from ..processes import busy_cpu_s, parents, related, tree_cpu_s


class SharedCpu:
    """Asked on each tick. While the stage is alone it costs one listing of a folder."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.register = MeterRegister(pid)
        self.last: tuple[float, float] | None = None  # own and the host's busy CPU seconds

    def share(self) -> float | None:
        """Share since the last tick, 0 to 1; None while no unrelated stage is measured."""
        others = self.register.others()
        if not others and self.last is None:
            return None
        parent = parents()
        others = [pid for pid in others if not related(pid, self.pid, parent)]  # a meter around or inside this one
        if not others and self.last is None:
            return None
        now = (tree_cpu_s(self.pid, parent), busy_cpu_s())
        before, self.last = self.last, now if others else None
        if before is None:
            # the other appeared within this interval: both could claim it whole, so neither gets more than half
            return 0.5
        busy = now[1] - before[1]
        return min(1.0, max(0.0, now[0] - before[0]) / busy) if busy > 0 else 0.0

    def close(self) -> None:
        self.register.close()
