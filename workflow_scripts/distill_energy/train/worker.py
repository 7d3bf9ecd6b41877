"""A peer of a training on several processes: ``python -m distill_energy.train.worker``, its task on standard input."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config.params import TrainingParams
from ..errors import UserError
from .job import Job, Peers
from .memory import keep_freed_memory, out_of_memory
from .processes import member
from .reference import loop_of

#: Seconds to end by itself after the parent is gone or done.
PATIENCE_S = 5.0


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
    done = end_with_parent()
    status = take_part(job_of(content), content["rendezvous"], content["count"])
    done.set()
    return status


def job_of(content: dict[str, Any]) -> Job:
    """The job that a peer was told (see ``processes.task``)."""
    return Job(
        params=TrainingParams.model_validate(content["params"]),
        inputs={role: Path(path) for role, path in content["inputs"].items()},
        work=Path(content["work"]),
        meter=NoMeter(),
        log=lambda message: None,
        name=content["name"],
        version=content["version"],
        peers=Peers(**content["peers"]),
    )


def take_part(job: Job, rendezvous: str, count: int) -> int:
    """Train to the end with the others; prints the reason if it fails for one that has a name."""
    if job.peers.device == "cpu":
        keep_freed_memory()
    try:
        with member(job, job.peers, rendezvous, count):
            loop = loop_of(job)
            loop.run()
            loop.final_weights()
    except UserError as error:
        print(error, flush=True)
        return 1
    except Exception as error:
        message = out_of_memory(job, error)
        if message is None:
            raise
        print(message, flush=True)
        return 1
    return 0


def end_with_parent() -> threading.Event:
    """Watch standard input, which closes when the parent ends, however it ends. Set the event when all is done."""
    done = threading.Event()
    threading.Thread(target=_watch_parent, args=(done,), daemon=True).start()
    return done


def _watch_parent(done: threading.Event) -> None:
    # The descriptor itself: a buffered reader would hold a lock that the interpreter wants at its end.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    if not done.wait(PATIENCE_S):
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
