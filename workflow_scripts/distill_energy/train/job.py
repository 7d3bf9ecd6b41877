"""What one training needs to know: the stage's parameters and inputs, and this process's place among its peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Peers:
    """This process among those that train together. ``device`` is a torch device."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether this process writes files, logs and meters."""
        return self.rank == 0


@dataclass
class Job:
    """One training. ``params`` as in docs/architecture.md; ``meter`` of rank 0, or a stand-in that counts nothing."""

    params: dict[str, Any]
    inputs: dict[str, Path]
    work: Path
    meter: Any
    log: Callable[[str], None]
    name: str = "training"
    version: str = ""
    joules_before: float | None = 0.0  # of earlier attempts; None: unknown
    peers: Peers = field(default_factory=Peers)

    @property
    def training(self) -> dict[str, Any]:
        return self.params["training"]

    @property
    def seed(self) -> int:
        return int(self.params["seed"])
