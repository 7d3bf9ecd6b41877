"""SIGTERM, put off to the end of the step, so that a checkpoint can be written before this process ends."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

#: Seconds from the signal to this process's end, checkpoint or not. SLURM kills 30 s after the signal (KillWait), and
#: the meter wants some of them to close the attempt.
GRACE_S = 20.0


class Preemption:
    """``with Preemption() as preemption``: SIGTERM sets ``asked``; ``now()`` does what the signal would have done.

    A second SIGTERM, or one ``grace_s`` after the first that this object sends itself, is not put off. Does nothing
    outside the main thread, where no signal can be handled, or where SIGTERM is ignored.
    """

    def __init__(self, grace_s: float | None = None) -> None:
        self.grace_s = GRACE_S if grace_s is None else grace_s
        self.asked = False
        self._former: Any = None
        self._installed = False
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is not threading.main_thread():
            return self
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            # None: a handler that was not installed from Python, which Python cannot put back
            self._former = signal.signal(signal.SIGTERM, self._on_signal) or signal.SIG_DFL
            self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._installed:
            self._installed = False
            signal.signal(signal.SIGTERM, self._former)

    def now(self) -> None:
        """Hand the signal to the handler that was there before: the meter's raises SystemExit."""
        self.__exit__()
        self.asked = False
        signal.raise_signal(signal.SIGTERM)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self.now()
            return
        self.asked = True
        self._timer = threading.Timer(self.grace_s, os.kill, (os.getpid(), signal.SIGTERM))
        self._timer.daemon = True
        self._timer.start()
