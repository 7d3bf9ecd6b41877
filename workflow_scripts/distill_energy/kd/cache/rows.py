"""The two in-memory shapes of a cache's rows: integer codes (``EncodedRows``) and values (``TeacherRows``). numpy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from .spec import CacheSpec

#: Fixed point of stored log-sum-exps: code = (x − LSE_LOW) / LSE_STEP, in 16 bits; code 0 stands for −∞.
LSE_LOW = -40.0
LSE_STEP = 1e-3


@dataclass
class EncodedRows:
    """Quantised rows of n response tokens, K = head, D ≤ tail distinct sampled tokens (padded with −1)."""

    head_ids: "np.ndarray"  # int32 [n, K], most probable first
    head_codes: "np.ndarray"  # int32 [n, K], (top − z) / step, not decreasing, first is 0
    tail_ids: "np.ndarray"  # int32 [n, D], ascending, −1 where there is none
    tail_codes: "np.ndarray"  # int32 [n, D], (last of the head, or reference − z) / tail step
    tail_counts: "np.ndarray"  # int32 [n, D], draws of each
    lse_codes: "np.ndarray"  # uint16 [n, number of lse_temperatures]
    stats: dict[str, "np.ndarray"] = field(default_factory=dict)  # float32 [n] or [n, temperatures], not stored

    def __len__(self) -> int:
        return len(self.lse_codes)

    def select(self, index: "np.ndarray | slice") -> "EncodedRows":
        """Rows at ``index``."""
        stats = {key: value[index] for key, value in self.stats.items()}
        arrays = (self.head_ids, self.head_codes, self.tail_ids, self.tail_codes, self.tail_counts, self.lse_codes)
        return EncodedRows(*(array[index] for array in arrays), stats=stats)


@dataclass
class PackedRows:
    """One example's rows as stored: a binary (see ``codec``) and the two counts needed to unpack it."""

    tokens: int
    tail_total: int  # distinct sampled tokens over all rows
    payload: bytes = b""
    stats: dict[str, "np.ndarray"] = field(default_factory=dict)  # not stored

    def __len__(self) -> int:
        return self.tokens

    @property
    def nbytes(self) -> int:
        return len(self.payload)


@dataclass
class TeacherRows:
    """What is known of the teacher at n response tokens of one example, in order.

    The first ``spec.head`` columns of ``ids`` and ``logits`` are the head, the rest is the sampled tail. ``logits`` are
    relative to a reference of the row: the largest logit, or, without a head, the log-sum-exp at T = 1.
    """

    ids: "np.ndarray"  # int32 [n, m]
    logits: "np.ndarray"  # float32 [n, m], ≤ 0
    counts: "np.ndarray"  # int16 [n, m − head], draws of a tail token, 0 for padding
    tail_lse: "np.ndarray"  # float32 [n, temperatures]: log Σ over tokens outside the head of exp(logit / T)
    spec: "CacheSpec"

    def __len__(self) -> int:
        return len(self.ids)
