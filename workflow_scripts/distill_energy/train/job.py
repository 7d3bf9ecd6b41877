"""What one training needs to know: the stage's parameters and inputs, and the process group that it is one of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..config.params import TrainingParams
from ..config.training import Training
from ..context import Meter

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Peers:
    """The process group, as one of its processes sees it. ``device`` is a torch device."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether this process writes files, logs and meters."""
        return self.rank == 0

    def reduce(self, values: Tensor) -> Tensor:
        """Sum over the processes."""
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return values

    def reduce_counts(self, *counts: int) -> tuple[int, ...]:
        """Sum integers over the processes."""
        if self.world == 1:
            return counts
        total = self.reduce(torch.tensor(counts, dtype=torch.int64, device=self.device))
        return tuple(total.tolist())

    def least(self, value: int) -> int:
        """The smallest of the processes' values."""
        if self.world == 1:
            return value
        least = torch.tensor([value], device=self.device)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
        return int(least.item())

    def agree(self, decision: bool) -> bool:
        """The leading process's decision, in every process."""
        if self.world == 1:
            return decision
        value = torch.tensor([int(decision)], device=self.device)
        torch.distributed.broadcast(value, 0)
        return bool(value.item())

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            torch.distributed.barrier()


@dataclass
class Job:
    """One training. ``params`` as in docs/architecture.md; ``meter`` of rank 0, or a stand-in that counts nothing."""

    params: TrainingParams
    inputs: dict[str, Path]
    work: Path
    meter: Meter
    log: Callable[[str], None]
    name: str = "training"
    version: str = ""
    joules_before: float | None = 0.0  # of earlier attempts; None: unknown
    peers: Peers = field(default_factory=Peers)

    @property
    def training(self) -> Training:
        return self.params.training

    @property
    def seed(self) -> int:
        return self.params.seed
