"""Tokenised examples in memory, read from an artifact's Parquet files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError

if TYPE_CHECKING:
    import numpy as np


@dataclass
class Examples:
    """Examples of one split as flat arrays: example i is ``tokens[offsets[i] : offsets[i + 1]]``.

    Flat arrays cost 5 bytes a token where Python lists cost 60, which matters at 10⁸ tokens.
    """

    ids: list[str]
    tokens: np.ndarray  # int32 [total]
    labels: np.ndarray  # bool [total], True where the token is a label; never at an example's first token
    offsets: np.ndarray  # int64 [examples + 1]
    path: Path
    tokenizer_hash: str | None = None  # of the tokenizer that made the tokens, where the file says so

    def __len__(self) -> int:
        return len(self.ids)

    def lengths(self) -> np.ndarray:
        """Tokens of each example [examples]."""
        return self.offsets[1:] - self.offsets[:-1]

    def label_counts(self) -> np.ndarray:
        """Labels of each example [examples]."""
        total = np.concatenate([[0], np.cumsum(self.labels, dtype=np.int64)])
        return total[self.offsets[1:]] - total[self.offsets[:-1]]

    def members(self, index: np.ndarray) -> np.ndarray:
        """The sequences that the examples at ``index`` are made of, in order."""
        return np.asarray(index)

    def sequences(self, index: np.ndarray) -> np.ndarray:
        """Tokens of each sequence of the examples at ``index``."""
        return (self.offsets[1:] - self.offsets[:-1])[self.members(index)]

    def terms(self, labels: int, examples: int) -> int:
        """How many terms the loss over so many labels of so many examples is a mean of."""
        return labels

    def at(self, index: np.ndarray) -> Examples:
        """The examples at ``index``, in that order."""
        return subset(self, index)

    def rows(self, batch: Any) -> Any:
        """What the loss reads beside a batch of these examples where they hold it."""
        return None


def read_examples(path: str | Path, vocabulary: int, limit: int | None = None) -> Examples:
    """Read ``train.parquet`` or ``validation.parquet`` (columns id, input_ids, loss_mask).

    Examples without a label are left out. Raises UserError if nothing is left, if a column is missing, if mask and
    tokens differ in length, or if a token id is outside the student's ``vocabulary`` (rows of its embedding).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: missing")
    try:
        table = pq.read_table(path, columns=["id", "input_ids", "loss_mask"], partitioning=None)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if table.num_rows == 0:
        raise UserError(f"{path}: holds no examples")
    tokens, offsets = _flat(table["input_ids"])
    masks, mask_offsets = _flat(table["loss_mask"])
    if not np.array_equal(offsets, mask_offsets):
        raise UserError(f"{path}: input_ids and loss_mask differ in length")
    labels = masks.astype(bool)
    lengths = np.diff(offsets)
    labels[offsets[:-1][lengths > 0]] = False  # nothing precedes the first token, so nothing predicts it
    made_by = (table.schema.metadata or {}).get(b"tokenizer_sha256")
    made_by = made_by.decode() if made_by else None
    examples = Examples(table["id"].to_pylist(), tokens.astype(np.int32), labels, offsets, path, made_by)
    keep = np.flatnonzero(examples.label_counts())[:limit]
    if len(keep) == 0:
        raise UserError(f"{path}: no example has a label (loss_mask is 0 everywhere)")
    if len(keep) < len(examples):
        examples = subset(examples, keep)
    low, high = int(examples.tokens.min()), int(examples.tokens.max())
    if low < 0 or high >= vocabulary:
        bad = low if low < 0 else high
        raise UserError(f"{path}: token id {bad} is outside the student's vocabulary of {vocabulary}")
    return examples


def subset(examples: Examples, index: np.ndarray) -> Examples:
    """The examples at ``index``, in that order."""
    spans = [slice(examples.offsets[i], examples.offsets[i + 1]) for i in examples.members(index)]
    tokens = np.concatenate([examples.tokens[s] for s in spans])
    labels = np.concatenate([examples.labels[s] for s in spans])
    offsets = np.concatenate([[0], np.cumsum([s.stop - s.start for s in spans])]).astype(np.int64)
    return replace(examples, ids=[examples.ids[i] for i in index], tokens=tokens, labels=labels, offsets=offsets)


def _flat(column) -> tuple[np.ndarray, np.ndarray]:
    """Values and offsets of a list column, its chunks joined."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return array.flatten().to_numpy(zero_copy_only=False), offsets
