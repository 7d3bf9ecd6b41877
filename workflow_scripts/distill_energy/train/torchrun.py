"""One student's training with processes that torchrun starts, where the stage cannot start them itself.

    torchrun --nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 \\
        -m distill_energy.train.torchrun config.yaml results/student_training/NAME/VERSION

In the workflow's folder, when what the stage reads is there. The process of rank 0 is the stage itself (lock, meter,
artifact, sidecar), and one process of each other node meters that node. Snakemake finds the artifact whole afterwards.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import load_config
from ..config.params import TrainingParams, read_params
from ..context import Context
from ..errors import UserError
from ..plan import StageSpec, build_plan
from ..stage import execute, let_threads_sleep
from ..store import sidecar
from ..store.artifact import damage
from .job import Job, Peers
from .node import meter_of
from .processes import check_processes, device_of
from .run import train_among
from .worker import NoMeter, take_part

RENDEZVOUS = "env://"  # torchrun's own store, at MASTER_ADDR and MASTER_PORT


@dataclass(frozen=True)
class Place:
    """This process among those that torchrun started."""

    rank: int
    local_rank: int
    world: int
    count: int  # processes on this node

    @classmethod
    def of_environment(cls) -> "Place":
        """Raises UserError if torchrun did not start this process."""
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        try:
            return cls(*(int(os.environ[name]) for name in names))
        except KeyError as error:
            raise UserError(f"{error.args[0]} is not set; start this by torchrun") from None

    def peers(self) -> Peers:
        """Raises UserError if this host has not a device for each of its processes."""
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
        check_processes(self.count, device_type)
        return Peers(self.rank, self.local_rank, self.world, device_of(device_type, self.local_rank))


def main(arguments: list[str]) -> int:
    """Take the part of this process's rank. Returns the exit status."""
    let_threads_sleep()
    place = None
    try:
        if len(arguments) != 2:
            raise UserError(f"usage: torchrun … -m {__spec__.name} CONFIG results/student_training/NAME/VERSION")
        place = Place.of_environment()
        spec = spec_of(*arguments)
        check_place(place, spec)
        if place.rank == 0:
            execute(spec, lambda ctx: lead(ctx, place))
            return 0
        # Rank 0 commits only what all ranks have trained: if the artifact is whole, it was before this start.
        return 0 if whole(spec) else follow(spec, place)
    except UserError as error:
        if place is None or place.local_rank == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 1


def spec_of(config: str, target: str) -> StageSpec:
    """The stage that makes ``target``, the artifact's folder or its sidecar."""
    folder = Path(target).parent if target.endswith(sidecar.SIDECAR_NAME) else Path(target)
    parts = folder.parts
    if len(parts) < 4 or parts[-3] != "student_training":
        raise UserError(f"{target}: not the folder of a student's training (results/student_training/NAME/VERSION)")
    return build_plan(load_config(config), str(Path(*parts[:-3]))).spec(*parts[-3:])


def check_place(place: Place, spec: StageSpec) -> None:
    """Raise UserError unless torchrun started what the configuration says (its results name the count)."""
    training = read_params(spec.stage, spec.params).training
    nodes, count = training.nodes or 1, training.processes or 1
    if (place.world, place.count) != (nodes * count, count):
        raise UserError(
            f"training.nodes {nodes} and training.processes {count} do not agree with torchrun's "
            f"{place.world} processes, {place.count} of them on this node"
        )


def whole(spec: StageSpec) -> bool:
    """Whether the artifact was made already (see ``stage.execute``)."""
    path = Path(spec.attempts) / sidecar.SIDECAR_NAME
    return path.exists() and damage(spec.folder, sidecar.read(path)) is None


def lead(ctx: Context[TrainingParams], place: Place) -> dict[str, Any]:
    """The stage's work, by rank 0."""
    return train_among(ctx, place.peers(), RENDEZVOUS, place.count)


def follow(spec: StageSpec, place: Place) -> int:
    """Train as another rank than 0; the first of a node meters it."""
    job = Job(
        params=read_params(spec.stage, spec.params),
        inputs={item.role: Path(item.folder) for item in spec.consumes},
        work=Path(spec.attempts) / "work",
        meter=NoMeter(),
        log=lambda message: None,
        name=spec.name,
        version=spec.version,
        peers=place.peers(),
    )
    if place.local_rank:
        return take_part(job, RENDEZVOUS, place.count)
    with meter_of({**spec.to_json(), "attempts": spec.attempts}):
        status = take_part(job, RENDEZVOUS, place.count)
        if status:
            raise SystemExit(status)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
