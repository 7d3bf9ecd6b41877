"""A page of memory that stage and sampler share: running total one way, token counts the other.

It lives in an anonymous file whose descriptor the sampler inherits. The counts are therefore still readable after the
stage was killed at any instant, and reading the running total costs a training step a microsecond.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile

TOKEN_KINDS = ("processed", "loss", "generated", "padding")
_SIZE = mmap.PAGESIZE
_UNSET = -1  # a token kind that the stage never counted: null, not 0


class Board:
    """Slots of 8 bytes, each written by one side only (an aligned 8-byte store is not torn)."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, _SIZE)
        view = memoryview(self._map)
        self._floats = view[:64].cast("d")  # 0: running total in J (nan: unknown), 1: its monotonic time
        self._counts = view[64:128].cast("q")  # 0..3: tokens by kind

    @classmethod
    def create(cls) -> "Board":
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("distill-energy", os.MFD_CLOEXEC)
        else:  # other Unix
            with tempfile.TemporaryFile() as handle:
                fd = os.dup(handle.fileno())
        os.ftruncate(fd, _SIZE)
        board = cls(fd)
        board.set_total(None, 0.0)
        for slot in range(len(TOKEN_KINDS)):
            board._counts[slot] = _UNSET
        return board

    def set_total(self, joules: float | None, t: float) -> None:
        self._floats[1] = t
        self._floats[0] = math.nan if joules is None else joules

    def total(self) -> float | None:
        value = self._floats[0]
        return None if math.isnan(value) else value

    def reading(self) -> tuple[float, float | None]:
        """(monotonic time of the running total, the total)."""
        return self._floats[1], self.total()

    def add_tokens(self, kind: str, n: int) -> None:
        slot = TOKEN_KINDS.index(kind)
        self._counts[slot] = max(self._counts[slot], 0) + n

    def tokens(self) -> dict[str, int | None]:
        return {kind: None if self._counts[i] == _UNSET else self._counts[i] for i, kind in enumerate(TOKEN_KINDS)}

    def close(self) -> None:
        self._floats.release()
        self._counts.release()
        os.close(self.fd)
