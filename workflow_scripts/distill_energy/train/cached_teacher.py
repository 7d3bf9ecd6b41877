"""The teacher's cached distributions, checked against the student and its data, batch by batch on a device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..kd.cache.checks import check_temperature, check_vocabulary
from ..kd.cache.reader import CacheReader
from ..kd.losses.teacher import collate_teacher


class CachedTeacher:
    """An open logit cache. Raises UserError if it was made with another tokenizer or a larger vocabulary than the
    student's, or cannot carry distillation at this temperature.
    """

    def __init__(
        self,
        folder: str | Path,
        vocabulary: int,
        temperature: float,
        tokenizer_hash: str | None = None,
        log: Callable[[str], None] = lambda message: None,
        tokens: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.reader = CacheReader(self.folder)
        check_vocabulary(
            self.reader.provenance.get("tokenizer_sha256"),
            self.reader.spec.vocab_size,
            tokenizer_hash,
            vocabulary,
            student=f"the student of {self.folder.name}",
            tokens=tokens,
        )
        self.vocabulary = vocabulary
        if self.reader.spec.vocab_size > vocabulary:
            log(
                f"the teacher's output layer has {self.reader.spec.vocab_size - vocabulary} rows more than the "
                "student's, all beyond the tokenizer: what it gives them is left out and the rest scaled up"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are logged instead
            for message in check_temperature(self.reader.certificate, None, temperature):
                log(message)

    def check(self, ids: list[str]) -> None:
        """Raise UserError if an example of the data is not in the cache."""
        missing = next((i for i in ids if i not in self.reader), None)
        if missing is not None:
            raise UserError(f"{self.folder}: the logit cache holds no example {missing!r}")

    def batch(self, ids: list[str], labels: int, device: str) -> Any:
        """The rows of these examples' labels, in order. Raises UserError if their number is not ``labels``."""
        rows = self.reader.batch(ids)
        found = len(rows)
        if found != labels:
            raise UserError(f"{self.folder}: {found} cached tokens for {labels} labels of {', '.join(ids[:4])}…")
        return collate_teacher(rows, device, self.vocabulary)
