"""The append-only journal of an attempt: JSON lines, one writer at a time, readable after any kill.

Records (``r``): ``open`` (who, which devices), ``go`` (the window begins), ``tick`` (one sample), ``phase+``,
``phase-``, ``tokens``, ``flag``, ``note``, ``end``. ``t`` is monotonic seconds, ``u`` Unix seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from pathlib import Path
from typing import Any

NAME = "journal.jsonl"
BACKLOG = 200_000  # lines kept in memory while the disk refuses them (about 60 MB)


class JournalWriter:
    """Appends records with one ``write`` each. While the disk is full the lines wait in memory, in order."""

    def __init__(self, path: Path, heal: bool = True) -> None:
        self.path = path
        self.fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.waiting: deque[bytes] = deque()
        self.begun: bytes | None = None  # the whole of a line of which a part is on disk
        self.failure: str | None = None
        self.dropped = 0
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
        if len(self.waiting) < BACKLOG:
            self.waiting.append(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        else:
            self.dropped += 1
        self.flush()

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


def read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Records of a journal and the number of lines that are not whole (a kill in the middle of a write, disk full)."""
    records, torn = [], 0
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            torn += 1
            continue
        if isinstance(record, dict) and "r" in record:
            records.append(record)
        else:
            torn += 1
    return records, torn
