"""The part that another node of a SLURM job takes: it meters its node once and trains with its own processes.

``srun … python -m distill_energy.train.node``, the task on standard input (srun hands it to every node). The node's
attempt lies beside rank 0's and adds to the stage's energy; its tokens are counted by rank 0.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..energy import Meter, MeterConfig
from ..errors import UserError
from ..stage import own_gpus
from .processes import WorkerGroup, available, check_processes, device_of
from .worker import end_with_parent, job_of, take_part


def main() -> int:
    """Returns the exit status; a reason for failing is the last line of standard output."""
    content = json.loads(sys.stdin.readline())
    done = end_with_parent()
    count, world = content["count"], content["peers"]["world"]
    first = (1 + int(os.environ.get("SLURM_PROCID", 0))) * count
    device_type = "cpu" if content["peers"]["device"] == "cpu" else "cuda"
    workers = WorkerGroup(lambda message: print(message, file=sys.stderr, flush=True))
    try:
        if device_type == "cuda" and not available("cuda"):
            raise UserError("another node of the job has no GPU")
        check_processes(count, device_type)
        with own_gpus(count, "student_training"), meter_of(content["spec"]):
            job = job_of(content)
            job.peers = replace(job.peers, rank=first, device=device_of(device_type, 0))
            workers.start_local(job, first, count, world, device_type, content["rendezvous"])
            workers.watch()
            status = take_part(job, content["rendezvous"], count)
            if status:
                raise SystemExit(status)
    except UserError as error:
        print(error, flush=True)
        return 1
    finally:
        workers.stop()
    done.set()
    return 0


def meter_of(spec: dict[str, Any]) -> Any:
    """A meter of this node whose attempt lies beside those of the stage ``spec`` (as JSON)."""
    energy = spec["energy"]
    config = MeterConfig.of(energy)
    identity = {"stage": spec["stage"], "name": spec["name"], "version": spec["version"]}
    return Meter(attempts_dir=Path(spec["attempts"]), config=config, identity=identity)


if __name__ == "__main__":
    sys.exit(main())
