"""The teacher's cached distributions, checked against the student and its data, batch by batch on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UserError


class CachedTeacher:
    """Opens a logit cache. Raises UserError if its vocabulary is not the student's."""

    def __init__(self, folder: str | Path, vocabulary: int) -> None:
        from ..teacher.cache.reader import CacheReader

        self.folder = Path(folder)
        self.reader = CacheReader(self.folder)
        cached = self.reader.spec.vocab_size
        if cached != vocabulary:
            raise UserError(
                f"{self.folder}: the teacher's vocabulary has {cached} tokens, the student's {vocabulary}; "
                "distillation needs one vocabulary (use the synthetic pipeline between families)"
            )

    def check(self, ids: list[str]) -> None:
        """Raise UserError if an example of the data is not in the cache."""
        missing = next((i for i in ids if i not in self.reader), None)
        if missing is not None:
            raise UserError(f"{self.folder}: the logit cache holds no example {missing!r}")

    def batch(self, ids: list[str], labels: int, device: str) -> Any:
        """The rows of these examples' labels, in order. Raises UserError if their number is not ``labels``."""
        from ..losses.kd import collate_teacher

        rows = self.reader.batch(ids)
        found = sum(len(row) for row in rows)
        if found != labels:
            raise UserError(
                f"{self.folder}: {found} cached tokens for {labels} labels of examples {', '.join(ids[:4])}"
            )
        return collate_teacher(rows, device)
