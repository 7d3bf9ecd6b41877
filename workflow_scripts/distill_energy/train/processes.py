"""Several processes that train one student: starting them, joining them, and ending them together.

The stage's own process is rank 0, so that the meter, the files and the progress need no messages between processes. The
others are its children (``worker.py``): they end when it ends, and it ends when one of them fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from ..config.training import Training
from ..energy.host import usable_cores
from ..energy.identity import job_field
from ..errors import UserError
from .job import Job, Peers

JOIN_TIMEOUT = timedelta(minutes=10)
#: Seconds that rank 0 has to notice by itself that a peer is gone.
GRACE_S = 30.0
#: Seconds that another node has to close its meter and say so.
NODE_PATIENCE_S = 90.0


def available(device_type: str) -> int:
    """GPUs that this process may use, or processor cores where there is no GPU."""
    if device_type == "cuda":
        return torch.cuda.device_count()
    return usable_cores()


def check_processes(wanted: int, device_type: str) -> None:
    """Raise UserError if ``wanted`` processes a node have not a device each."""
    found = available(device_type)
    if wanted > found:
        what = "GPUs" if device_type == "cuda" else "processor cores"
        raise UserError(f"training.processes is {wanted}, this host has {found} {what} for them")


def device_of(device_type: str, local_rank: int) -> str:
    """The torch device of a process."""
    return f"cuda:{local_rank}" if device_type == "cuda" else "cpu"


def join(peers: Peers, rendezvous: str, count: int) -> None:
    """Make this process one of the group, and share the host's cores among its ``count``."""
    if peers.world == count:
        # All on one host: the loopback interface always exists, the host's name may not resolve.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if peers.device == "cpu":
        torch.set_num_threads(max(1, available("cpu") // count))
        backend = "gloo"
    else:
        torch.cuda.set_device(peers.device)
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(
        backend, init_method=rendezvous, rank=peers.rank, world_size=peers.world, timeout=JOIN_TIMEOUT
    )


@contextlib.contextmanager
def member(job: Job, peers: Peers, rendezvous: str, count: int) -> Iterator[Job]:
    """Be one of a group of processes that were started already; leave it when all of them are done."""
    join(peers, rendezvous, count)
    job.peers = peers
    try:
        yield job
        torch.distributed.barrier()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@contextlib.contextmanager
def group(job: Job, count: int, device_type: str, nodes: int = 1, spec: dict[str, Any] | None = None) -> Iterator[Job]:
    """Start the peers of this process, ``count`` a node, and yield the job of rank 0 among them.

    ``spec`` (a stage's, as JSON) is what the other nodes meter themselves by. Raises UserError with a peer's own
    message if a peer fails for a reason that it can name.
    """
    world = count * nodes
    if nodes == 1:
        rendezvous = f"file://{(job.work / f'rendezvous-{uuid.uuid4().hex}').resolve()}"
    else:
        rendezvous = f"tcp://{socket.gethostname()}:{_free_port()}"
    workers = WorkerGroup(job.log)
    try:
        workers.start_local(job, 0, count, world, device_type, rendezvous)
        if nodes > 1:
            workers.start_nodes(job, nodes, count, world, device_type, rendezvous, spec or {})
        workers.watch()
        own = Peers(0, 0, world, device_of(device_type, 0))
        # The group ends before the children are stopped: with rank 0's store gone no peer waits in vain. What went
        # wrong is asked before that, since its end makes the other peers fail too.
        with workers.explaining(), member(job, own, rendezvous, count), workers.explaining():
            yield job
    finally:
        workers.stop()
        Path(rendezvous.removeprefix("file://")).unlink(missing_ok=True)


def nodes_of(training: Training) -> int:
    """Nodes to train on. Raises UserError if the job was not given as many."""
    nodes = training.nodes or 1
    if nodes == 1:
        return 1
    # the environment of Snakemake's job step is that of a job of one node
    job = os.environ.get("SLURM_JOB_ID")
    told = job_field(job, "NumNodes")[0] if job else None
    given = int(told or os.environ.get("SLURM_JOB_NUM_NODES") or 1)
    if nodes > given:
        raise UserError(f"training.nodes is {nodes}, this job has {given} (several nodes take a SLURM job of as many)")
    return nodes


def task(job: Job, peers: Peers, rendezvous: str, count: int) -> dict[str, Any]:
    """What a peer is told, as JSON."""
    return {
        "params": job.params.model_dump(mode="json"),
        "inputs": {role: str(path) for role, path in job.inputs.items()},
        "work": str(job.work),
        "name": job.name,
        "version": job.version,
        "peers": asdict(peers),
        "rendezvous": rendezvous,
        "count": count,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _environment(device_type: str, count: int) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([_root(), os.environ.get("PYTHONPATH", "")])}
    if device_type == "cpu":
        environment["OMP_NUM_THREADS"] = str(max(1, available("cpu") // count))
    return environment


class WorkerGroup:
    """The children of rank 0."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log = log
        self.children: list[subprocess.Popen] = []
        self.stopping = threading.Event()
        self.patience_s = 0.0

    def start_local(self, job: Job, first: int, count: int, world: int, device_type: str, rendezvous: str) -> None:
        """Start this host's peers of rank ``first``, which is this process."""
        for local_rank in range(1, count):
            peers = Peers(first + local_rank, local_rank, world, device_of(device_type, local_rank))
            command = [sys.executable, "-m", "distill_energy.train.worker"]
            self.start(command, task(job, peers, rendezvous, count), _environment(device_type, count))

    def start_nodes(
        self, job: Job, nodes: int, count: int, world: int, device_type: str, rendezvous: str, spec: dict[str, Any]
    ) -> None:
        """Start one process on each other node of the SLURM job; it meters its node and starts its own peers."""
        others = str(nodes - 1)
        srun = ["srun", f"--nodes={others}", f"--ntasks={others}", "--ntasks-per-node=1", "--relative=1", "--overlap"]
        content = task(job, Peers(0, 0, world, device_of(device_type, 0)), rendezvous, count) | {"spec": spec}
        command = [*srun, sys.executable, "-m", "distill_energy.train.node"]
        self.start(command, content, _environment(device_type, count), patience_s=NODE_PATIENCE_S)

    def start(
        self, command: list[str], content: dict[str, Any], environment: dict[str, str], patience_s: float = 10.0
    ) -> None:
        """Start one; its standard input stays open as a sign of life, its output carries the reason of a failure."""
        self.patience_s = max(self.patience_s, patience_s)
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
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

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Raise a child's reason as UserError in the place of the error that its end caused here."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            failure = self.failure()
            if failure:
                raise UserError(failure) from error
            raise

    def stop(self) -> None:
        """End the children: those that are done end by themselves, the others when their input closes."""
        self.stopping.set()
        for child in self.children:
            with contextlib.suppress(OSError):
                child.stdin.close()
        for child in self.children:
            try:
                child.wait(self.patience_s)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            child.stdout.close()


def _root() -> str:
    return str(Path(__file__).resolve().parents[2])
