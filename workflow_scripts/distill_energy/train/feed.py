"""What the next steps train on, made ready by a thread of its own while the current step computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import torch

#: Steps that are made ready ahead. One would do if making ready always took less time than a step.
DEPTH = 2
WAKE_S = 0.1  # how often a full feed looks whether it was closed


class Feed:
    """``prepare(step)`` of consecutive steps: ``depth`` of them wait at most, and one more may be in the making.

    ``prepare`` must be a function of the step alone, so that what is made ready early is what would be made on time: a
    training gives the same numbers with and without the thread. It is called for steps below ``last`` only. What it
    raises, ``take`` of that step raises.
    """

    def __init__(self, prepare: Callable[[int], Any], last: int, device: str = "cpu", depth: int = DEPTH) -> None:
        self.prepare, self.last, self.device, self.depth = prepare, last, device, depth
        self._thread: threading.Thread | None = None
        self._step = 0

    def take(self, step: int) -> Any:
        """What ``prepare(step)`` gave. The first call starts the thread; steps then follow each other."""
        if self._thread is None:
            self._start(step)
        if step != self._step or step >= self.last:
            raise ValueError(f"step {step} was asked for, {self._step} of {self.last} is next")
        self._step += 1
        value, error = self._ready.get()
        if error is not None:
            self.close()
            raise error
        return value

    def close(self) -> None:
        """End the thread; what it made ready is dropped. The next ``take`` may begin anywhere."""
        if self._thread is not None:
            self._closed.set()
            self._thread.join()
            self._thread = None

    def _start(self, step: int) -> None:
        self._step = step
        self._ready: queue.Queue = queue.Queue(maxsize=self.depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(step,), name="distill-energy-feed", daemon=True)
        self._thread.start()

    def _work(self, step: int) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.set_device(self.device)  # a thread's own; its copies are ordered by the default stream
        while step < self.last and not self._closed.is_set():
            try:
                item = self.prepare(step), None
            except BaseException as error:
                item = None, error
            while not self._closed.is_set():
                try:
                    self._ready.put(item, timeout=WAKE_S)
                    break
                except queue.Full:
                    continue
            if item[1] is not None:
                return
            step += 1
