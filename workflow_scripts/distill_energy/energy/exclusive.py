"""A lock per GPU on this host: two measured stages never both own one device's joules.

And a register of the meters that run, so that a CPU package that several stages share is divided among them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ..store.lock import take

#: One for all users and jobs of the host, whatever TMPDIR says.
FOLDER = "/tmp/distill-energy-locks"
FOLDER_VARIABLE = "DISTILL_ENERGY_LOCKS"  # environment: another folder
NOTE = 32  # bytes of a lock file: its holder's process
HELD = "DISTILL_ENERGY_GPUS_HELD"  # environment: GPUs that this process or one that started it holds


def lock_folder() -> Path:
    """Where locks lie. Jobs with a private /tmp cannot see each other there: name a shared folder of the host."""
    return Path(os.environ.get(FOLDER_VARIABLE) or FOLDER)


class DeviceLocks:
    """Advisory locks by GPU UUID; the kernel drops them when the holder dies, however it dies."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or lock_folder()
        self.held: list[int] = []
        self._before: str | None = None

    def acquire(self, uuids: Iterable[str], say: Callable[[str], None], poll_s: float = 0.5) -> float:
        """Hold all of ``uuids``; the seconds waited. Taken in sorted order, so two stages cannot deadlock.

        What a measuring ancestor holds (a meter around a whole workflow) is not waited for: it would be forever.
        """
        began = time.monotonic()
        self._before = os.environ.get(HELD)
        inherited = set(filter(None, (self._before or "").split(",")))
        for uuid in sorted(set(uuids) - inherited):
            descriptor = self._open(re.sub(r"[^A-Za-z0-9_.-]", "_", uuid))

            def waiting(uuid: str = uuid, descriptor: int = descriptor) -> None:
                say(f"waiting: GPU {uuid} is measured for process {_holder(descriptor)}")

            take(descriptor, waiting, poll_s)
            with contextlib.suppress(OSError):
                os.pwrite(descriptor, str(os.getpid()).encode().ljust(NOTE), 0)
            self.held.append(descriptor)
        os.environ[HELD] = ",".join(sorted(inherited | set(uuids)))
        return time.monotonic() - began

    def _open(self, name: str) -> int:
        make_shared(self.folder)
        path = self.folder / f"{name}.lock"
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
            os.fchmod(descriptor, 0o666)
            return descriptor
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_size > NOTE:
            os.close(descriptor)
            raise OSError(errno.EPERM, "something else lies in a lock's place", str(path))
        return descriptor

    def release(self) -> None:
        if not self.held:
            return
        while self.held:
            os.close(self.held.pop())
        if self._before is None:
            os.environ.pop(HELD, None)
        else:
            os.environ[HELD] = self._before


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "?"


def make_shared(folder: Path) -> None:
    """A folder that every user of the host may add to. Raises OSError if a link lies in its place: whoever put it
    there chooses what is written."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True)
        folder.chmod(0o1777)
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise OSError(errno.ENOTDIR, "is a link or a file, not a folder", str(folder))


class MeterRegister:
    """Which stages are being measured on this host. A locked file each, named by the stage's process."""

    def __init__(self, pid: int, folder: Path | None = None) -> None:
        folder = folder or lock_folder()
        self.folder = folder / "meters"
        make_shared(folder)
        make_shared(self.folder)
        self.pid = pid
        self.path = self.folder / f"{pid}.{os.getpid()}.{time.time_ns()}"
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def others(self) -> list[int]:
        """Processes of other stages being measured now."""
        found = []
        for name in os.listdir(self.folder):
            pid, _, _ = name.partition(".")
            if pid.isdigit() and int(pid) != self.pid and self._locked(self.folder / name):
                found.append(int(pid))
        return found

    def _locked(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            with contextlib.suppress(OSError):
                path.unlink()  # its meter is gone
            return False
        finally:
            os.close(descriptor)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self.descriptor)
