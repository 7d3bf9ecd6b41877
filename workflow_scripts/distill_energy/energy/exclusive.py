"""A lock per GPU on this host: two measured stages never both own one device's joules."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

FOLDER = Path("/tmp/distill-energy-locks")  # one for all users and jobs of the host, whatever TMPDIR says


class DeviceLocks:
    """Advisory locks by GPU UUID; the kernel drops them when the holder dies, however it dies."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self.held: list[int] = []

    def acquire(self, uuids: Iterable[str], say: Callable[[str], None], poll_s: float = 0.5) -> float:
        """Hold all of ``uuids``; the seconds waited. Taken in sorted order, so two stages cannot deadlock."""
        began = time.monotonic()
        for uuid in sorted(set(uuids)):
            descriptor = self._open(re.sub(r"[^A-Za-z0-9_.-]", "_", uuid))
            said = False
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not said:
                        said = True
                        say(f"waiting: GPU {uuid} is measured for process {_holder(descriptor)}")
                    time.sleep(poll_s)
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            self.held.append(descriptor)
        return time.monotonic() - began

    def _open(self, name: str) -> int:
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir(parents=True)
            self.folder.chmod(0o1777)
        path = self.folder / f"{name}.lock"
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(descriptor, 0o666)
            return descriptor
        return os.open(path, os.O_RDWR)

    def release(self) -> None:
        while self.held:
            os.close(self.held.pop())


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "?"
