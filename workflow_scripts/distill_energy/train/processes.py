"""Several processes that train one student: starting them, joining them, and ending them together.

The stage's own process is rank 0, so that the meter, the files and the progress need no messages between processes. The
others are its children (``worker.py``): they end when it ends, and it ends when one of them fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..errors import UserError
from .job import Job, Peers

JOIN_TIMEOUT = timedelta(minutes=10)
#: Seconds that rank 0 has to notice by itself that a peer is gone.
GRACE_S = 30.0


def available(device_type: str) -> int:
    """GPUs that this process may use, or processor cores where there is no GPU."""
    if device_type == "cuda":
        import torch

        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_processes(wanted: int, device_type: str) -> None:
    """Raise UserError if ``wanted`` processes a node have not a device each."""
    found = available(device_type)
    if wanted > found:
        what = "GPUs" if device_type == "cuda" else "processor cores"
        raise UserError(f"training.processes is {wanted}, this host has {found} {what} for them")


def device_of(device_type: str, local_rank: int) -> str:
    """The torch device of a process."""
    return f"cuda:{local_rank}" if device_type == "cuda" else "cpu"


def join(peers: Peers, rendezvous: str) -> None:
    """Make this process one of the group, and share the cores among the processes of a CPU."""
    import torch

    if peers.device == "cpu":
        torch.set_num_threads(max(1, available("cpu") // peers.world))
        backend = "gloo"
    else:
        torch.cuda.set_device(peers.device)
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(
        backend, init_method=rendezvous, rank=peers.rank, world_size=peers.world, timeout=JOIN_TIMEOUT
    )


@contextlib.contextmanager
def group(job: Job, count: int, device_type: str) -> Iterator[Job]:
    """Start ``count`` − 1 peers of this process and yield the job of rank 0 among them.

    Raises UserError with a peer's own message if a peer fails for a reason that it can name.
    """
    import torch

    rendezvous = f"file://{(job.work / f'rendezvous-{uuid.uuid4().hex}').resolve()}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([_root(), os.environ.get("PYTHONPATH", "")])}
    if device_type == "cpu":
        environment["OMP_NUM_THREADS"] = str(max(1, available("cpu") // count))
    # All on one host: the loopback interface always exists, the host's name may not resolve.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    crew = Crew(job.log)
    try:
        for rank in range(1, count):
            peers = Peers(rank, rank, count, device_of(device_type, rank))
            crew.start(task(job, peers, rendezvous), environment)
        crew.watch()
        own = Peers(0, 0, count, device_of(device_type, 0))
        join(own, rendezvous)
        job.peers = own
        yield job
        torch.distributed.barrier()
    except UserError:
        raise
    except Exception as error:
        failure = crew.failure()
        if failure:
            raise UserError(failure) from error
        raise
    finally:
        crew.stop()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        Path(rendezvous.removeprefix("file://")).unlink(missing_ok=True)


def task(job: Job, peers: Peers, rendezvous: str) -> dict[str, Any]:
    """What a peer is told, as JSON."""
    return {
        "params": job.params,
        "inputs": {role: str(path) for role, path in job.inputs.items()},
        "work": str(job.work),
        "name": job.name,
        "version": job.version,
        "peers": {
            "rank": peers.rank,
            "local_rank": peers.local_rank,
            "world": peers.world,
            "device": peers.device,
        },
        "rendezvous": rendezvous,
    }


class Crew:
    """The children of rank 0."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log = log
        self.children: list[subprocess.Popen] = []
        self.stopping = threading.Event()

    def start(self, content: dict[str, Any], environment: dict[str, str]) -> None:
        """Start one; its standard input stays open as a sign of life, its output carries the reason of a failure."""
        child = subprocess.Popen(
            [sys.executable, "-m", "distill_energy.train.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        child.stdin.write(json.dumps(content) + "\n")
        child.stdin.flush()
        self.children.append(child)

    def watch(self) -> None:
        threading.Thread(target=self._watch, daemon=True, name="distill-energy-peers").start()

    def _watch(self) -> None:
        """End this process if a peer died and a collective operation here waits for it for ever."""
        while not self.stopping.wait(1.0):
            if any(child.poll() not in (None, 0) for child in self.children):
                if self.stopping.wait(GRACE_S):
                    return
                self.log(f"error: {self.failure() or 'a training process ended'}")
                os._exit(1)

    def failure(self) -> str | None:
        """Why a child ended, in its words, or None if none has failed."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            for child in self.children:
                status = child.poll()
                if status not in (None, 0):
                    text = child.stdout.read().strip()
                    reason = text.splitlines()[-1] if text else f"ended with status {status}"
                    return f"training process {self.children.index(child) + 1}: {reason}"
            time.sleep(0.1)
        return None

    def stop(self) -> None:
        """End the children: those that are done end by themselves, the others when their input closes."""
        self.stopping.set()
        for child in self.children:
            with contextlib.suppress(OSError):
                child.stdin.close()
        for child in self.children:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            child.stdout.close()


def _root() -> str:
    return str(Path(__file__).resolve().parents[2])
