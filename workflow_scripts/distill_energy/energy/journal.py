"""The append-only journal of an attempt: JSON lines, one writer at a time, readable after any kill.

Records (``r``): ``open`` (who, which devices), ``go`` (the window begins), ``tick`` (one sample), ``phase+``,
``phase-``, ``tokens``, ``flag``, ``note``, ``end``. ``t`` is monotonic seconds, ``u`` Unix seconds. Each line ends with
the CRC-32 of the rest of it (``k``), so that a flipped bit is seen and never read as another figure.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import tempfile
import zlib
from collections import deque
from hashlib import sha256
from pathlib import Path
from typing import Any

NAME = "journal.jsonl"
BACKLOG = 200_000  # lines kept in memory while the disk refuses them (about 60 MB)


#: Written beside the journal when the window begins: without it, an empty journal is an attempt that spent nothing.
BEGUN = "begun"
#: What a reader of damaged records may run into.
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)
_CHECKED = re.compile(rb',"k":"([0-9a-f]{8})"}$')


def encode(record: dict[str, Any]) -> bytes:
    """A record as its line."""
    body = json.dumps(record, separators=(",", ":")).encode()
    return body[:-1] + b',"k":"%08x"}\n' % zlib.crc32(body)


def _whole(line: bytes) -> bool | None:
    """Whether a line is what was written; None for a line without a checksum."""
    found = _CHECKED.search(line)
    return None if found is None else zlib.crc32(line[: found.start()] + b"}") == int(found[1], 16)


def refuges(path: Path) -> list[Path]:
    """Where lines go that a full disk refuses: the nearest folder above on another disk, and ``TMPDIR``."""
    path = Path(os.path.abspath(path))
    name = f"distill-energy-journal-{sha256(os.fsencode(path)).hexdigest()[:16]}-{os.getuid()}.jsonl"
    places = []
    with contextlib.suppress(OSError):
        own = path.parent.stat().st_dev
        places += [folder for folder in path.parents if folder.stat().st_dev != own][:1]
    return [folder / name for folder in (*places, Path(tempfile.gettempdir()))]


def _open_own(path: Path, flags: int) -> int:
    """Open a file that is ours: in a shared folder anybody may have put one, or a link, in its place."""
    fd = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    status = os.fstat(fd)
    if status.st_uid != os.getuid() or not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise PermissionError(f"{path}: is not ours")
    return fd


class JournalWriter:
    """Appends records with one ``write`` each. While the disk is full the lines wait, in order: in memory, and in a
    refuge on another disk in case this process ends first."""

    def __init__(self, path: Path, heal: bool = True) -> None:
        self.path = path
        self.fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o664)
        self.waiting: deque[bytes] = deque()
        self.begun: bytes | None = None  # the whole of a line of which a part is on disk
        self.failure: str | None = None
        self.dropped = 0
        self.refuge: Path | None = None
        self._refuge_fd: int | None = None
        if heal:
            self._heal()

    def _heal(self) -> None:
        """End a torn last line of an earlier writer, so that ours is not glued to it."""
        size = os.fstat(self.fd).st_size
        if size:
            with open(self.path, "rb") as handle:
                handle.seek(size - 1)
                if handle.read(1) != b"\n":
                    self.waiting.append(b"\n")

    def write(self, record: dict[str, Any]) -> None:
        line = encode(record)
        if len(self.waiting) < BACKLOG:
            self.waiting.append(line)
        else:
            self.dropped += 1
        if not self.flush():
            self._take_refuge(line)

    def _take_refuge(self, line: bytes) -> None:
        """Keep a line that waits on another disk too. Where there is none it waits in memory alone."""
        if self._refuge_fd is None:
            for place in refuges(self.path):
                with contextlib.suppress(OSError):
                    self._refuge_fd = _open_own(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                    self.refuge = place
                    break
            else:
                return
            line = (self.begun or b"") + b"".join(list(self.waiting)[1 if self.begun else 0 :])
        with contextlib.suppress(OSError):
            os.write(self._refuge_fd, line)

    def _leave_refuge(self) -> None:
        if self._refuge_fd is not None:
            os.close(self._refuge_fd)
            with contextlib.suppress(OSError):
                self.refuge.unlink()
            self._refuge_fd = self.refuge = None

    def flush(self) -> bool:
        """Write what waits; False if the disk refused (the rest stays, a half-written line included)."""
        while self.waiting:
            line = self.waiting[0]
            try:
                done = os.write(self.fd, line)
            except OSError as error:
                self.failure = error.strerror or str(error)
                return False
            if done == len(line):
                self.waiting.popleft()
                self.begun = None
            else:
                self.begun = self.begun or line
                self.waiting[0] = line[done:]
        self._leave_refuge()
        return True

    def unwritten(self) -> tuple[list[bytes], bytes | None]:
        """What the disk refused: lines (the first may be the rest of one), and that first line as a whole."""
        return list(self.waiting), self.begun

    def sync(self) -> None:
        with contextlib.suppress(OSError):
            os.fsync(self.fd)

    def close(self) -> None:
        self.flush()
        self.sync()
        os.close(self.fd)
        if self._refuge_fd is not None:
            os.close(self._refuge_fd)


def read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Records of a journal and the number of lines that are not whole (a kill in the middle of a write, disk full, a
    flipped bit). What a full disk refused is read from its refuge."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    kept = _refuge_lines(path)
    checked = any(map(_whole, lines)) or any(map(_whole, kept))
    there = set(lines)
    records, torn = [], 0
    for line in (*lines, *(line for line in kept if line not in there)):
        if not line.strip():
            continue
        whole = _whole(line)
        record = None
        if whole or (whole is None and not checked):  # journals of earlier versions have no checksums
            with contextlib.suppress(ValueError):
                record = json.loads(line)
        if isinstance(record, dict) and "r" in record:
            record.pop("k", None)
            records.append(record)
        else:
            torn += 1
    return records, torn


def _refuge_lines(path: Path) -> list[bytes]:
    for place in refuges(path):
        with contextlib.suppress(OSError), os.fdopen(_open_own(place, os.O_RDONLY), "rb") as handle:
            return handle.read().split(b"\n")
    return []
