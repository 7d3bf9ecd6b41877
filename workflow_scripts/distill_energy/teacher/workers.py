"""A teacher's cache by several processes: shards are handed out one at a time, to whoever has nothing to do.

The stage's own process loads no model: it hands out, counts and meters. A shard's content does not depend on who makes
it. The children end when it ends (their connection closes); it ends in one line when one of them does, and what is
written stays for the next attempt.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import torch

from ..config.params import LogitsParams
from ..energy.host import describe_hardware
from ..errors import UserError
from ..models.sources import model_dtype

#: Of a GPU's memory, for weights: the rest is for activations and a chunk of logits.
ROOM = 0.85


def shared_out(asked: int | None, weights: int, memories: list[int | None]) -> int:
    """Processes for a model of ``weights`` bytes on GPUs of these bytes: one a GPU if it fits each of them, else one
    over all."""
    if any(memory is None or weights > ROOM * memory for memory in memories):
        return 1
    return min(asked or len(memories), len(memories))


def processes(asked: int | None, bare: Any, dtype: str, log: Callable[[str], None]) -> int:
    """How many processes make the cache: on a CPU as asked (default 1), on GPUs see ``shared_out``."""
    if not torch.cuda.is_available():
        return asked or 1
    memories = [gpu.memory_bytes for gpu in describe_hardware().gpus]
    size = sum(p.numel() for p in bare.parameters()) * model_dtype(dtype).itemsize
    count = shared_out(asked, size, memories) if len(memories) > 1 else 1
    if count < len(memories):
        log(f"teacher_logits: {count} process, the model of {size / 1e9:.0f} GB over {len(memories)} GPUs")
    return count


def _visible(index: int) -> str:
    """CUDA_VISIBLE_DEVICES of the process that takes the ``index``-th of this one's GPUs."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return str(index) if given is None else [entry.strip() for entry in given.split(",")][index]


class WorkerGroup:
    """Child processes that each hold the teacher. Leaving the block ends them."""

    def __init__(self, params: LogitsParams, inputs: dict[str, Path], out: Path, count: int) -> None:
        self.task = {
            "params": params.model_dump(mode="json"),
            "inputs": {k: str(v) for k, v in inputs.items()},
            "out": str(out),
        }
        self.count = count
        self.children: dict[Connection, subprocess.Popen] = {}
        self.facts: dict[str, Any] | None = None

    def __enter__(self) -> WorkerGroup:
        on_gpus = torch.cuda.is_available()
        path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
        for index in range(self.count):
            own, others = Pipe()
            environment = {**os.environ, "PYTHONPATH": path}
            if on_gpus:
                environment["CUDA_VISIBLE_DEVICES"] = _visible(index)
            command = [sys.executable, "-m", f"{__package__}.worker", str(others.fileno())]
            child = subprocess.Popen(command, pass_fds=[others.fileno()], env=environment, stdin=subprocess.DEVNULL)
            others.close()
            self.children[own] = child
            # On a CPU as many threads as one process would take: the order of a sum is theirs.
            self._send(own, {**self.task, "leads": index == 0, "threads": torch.get_num_threads()})
        return self

    def __exit__(self, *error: object) -> None:
        for connection in self.children:
            connection.close()
        for child in self.children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.0 if error[0] else 10.0)
            if child.poll() is None:
                child.kill()
                child.wait()

    def loaded(self) -> dict[str, Any]:
        """Wait until all have loaded the teacher; the facts of it."""
        told = [self._receive(connection) for connection in self.children]
        self.facts = told[0]["facts"]
        return self.facts

    def make(self, missing: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Have the missing shards made; yields each that is there, with what its process told of it."""
        todo = iter(list(missing))
        busy = {}
        for connection in self.children:
            self._send(connection, {"facts": self.facts})
        for connection in list(self.children):
            self._next(connection, todo, busy)
        while busy:
            for connection in wait(list(busy)):  # a process that ended is among them
                told = self._receive(connection)
                index = busy.pop(connection)
                missing.remove(index)
                self._next(connection, todo, busy)
                yield index, told

    def _next(self, connection: Connection, todo: Iterator[int], busy: dict[Connection, int]) -> None:
        if (index := next(todo, None)) is not None:
            self._send(connection, {"shard": index})
            busy[connection] = index

    def _send(self, connection: Connection, message: dict[str, Any]) -> None:
        try:
            connection.send(message)
        except OSError:
            self._receive(connection)  # says why, if it can

    def _receive(self, connection: Connection) -> dict[str, Any]:
        """The next message of a child. Raises UserError with its reason where it failed or is gone."""
        number = list(self.children).index(connection) + 1
        try:
            told = connection.recv()
        except (EOFError, OSError):
            status = self.children[connection].wait()
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            raise UserError(
                f"teacher_logits: process {number} of {self.count} ended ({how}); shards that are complete stay, start "
                "again to go on"
            ) from None
        if "error" in told:
            raise UserError(told["error"])
        if "failed" in told:
            raise RuntimeError(f"teacher_logits: process {number} of {self.count} failed\n{told['failed']}")
        return told
