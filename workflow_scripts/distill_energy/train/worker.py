"""A peer of a training on several processes: ``python -m distill_energy.train.worker``, its task on standard input."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from .job import Job, Peers


class NoMeter:
    """The meter of a process that does not lead: the leading one measures the whole host."""

    def add_tokens(self, kind: str, n: int) -> None:
        """Counted by the leading process."""

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        yield

    def joules(self) -> None:
        return None


def main() -> int:
    """Train as one of several. Returns the exit status; a reason for failing is the last line of standard output."""
    content = json.loads(sys.stdin.readline())
    done = threading.Event()
    threading.Thread(target=_end_with_parent, args=(done,), daemon=True).start()
    job = Job(
        params=content["params"],
        inputs={role: Path(path) for role, path in content["inputs"].items()},
        work=Path(content["work"]),
        meter=NoMeter(),
        log=lambda message: None,
        name=content["name"],
        version=content["version"],
        peers=Peers(**content["peers"]),
    )
    import torch

    from .loop import Loop
    from .memory import out_of_memory
    from .processes import join
    from .setup import Setup

    try:
        join(job.peers, content["rendezvous"])
        loop = Loop(job, Setup(job))
        loop.run()
        loop.final_weights()
        torch.distributed.barrier()
    except UserError as error:
        print(error, flush=True)
        return 1
    except Exception as error:
        message = out_of_memory(job, error)
        if message is None:
            raise
        print(message, flush=True)
        return 1
    done.set()
    torch.distributed.destroy_process_group()
    return 0


def _end_with_parent(done: threading.Event) -> None:
    """Standard input closes when the parent ends, however it ends."""
    sys.stdin.read()
    if not done.wait(5):
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
