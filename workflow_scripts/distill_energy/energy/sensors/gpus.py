"""The GPUs that a process sees, of both makers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from .amd import driver_shows_amd, open_amd
from .nvml import Health, driver_shows_gpu, open_gpus
from .visible import GpuEntry


class Reader(Protocol):
    """One GPU. ``share``: the part of its joules that goes to what the process sees of it (1: all; None: unknown), by
    ``share_rule``; ``mig``: the slices or partitions that it sees."""

    entry: GpuEntry
    mig: str | None
    share: float | None
    share_rule: str | None

    def read(self) -> tuple[int | None, int | None, str | None]:
        """(energy counter in its own counts, power in mW, what failed)."""

    def health(self) -> Health: ...

    def limit_w(self) -> float | None: ...

    def memory_bytes(self) -> int | None: ...

    def driver(self) -> str | None: ...

    def pids(self) -> list[int] | None: ...

    def describe(self) -> dict[str, Any]: ...


class Gpus:
    """Readers of every visible GPU; ``unreadable``: GPUs exist and cannot be read, for this reason; ``none``: why there
    is no GPU. Raises UserError on an ambiguous index."""

    def __init__(self, env: Mapping[str, str]) -> None:
        nvml, nvidia, visible = open_gpus(env)
        self.readers: list[Reader] = list(nvidia)
        self.notes = list(visible.notes)
        self.unreadable: list[str] = []
        self._open: list[Any] = [nvml]
        why = visible.reason or "no NVIDIA GPU"
        self.none = [why + (f" ({nvml.problem})" if nvml.problem else "")]
        if nvml.problem and driver_shows_gpu():
            self.unreadable.append(f"an NVIDIA GPU exists but cannot be read: {nvml.problem}")
        if driver_shows_amd():  # its package takes 0.1 s to import
            amd, readers, reason, notes = open_amd(env)
            self._open.append(amd)
            self.readers += readers
            self.notes += notes
            self.none += [reason] if reason else []
            if amd.problem:
                self.unreadable.append(f"an AMD GPU exists but cannot be read: {amd.problem}")

    def close(self) -> None:
        for library in self._open:
            library.close()
