"""The teacher's cached rows as tensors, and as weights at a temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..errors import UserError
from ..teacher.cache.weights import teacher_weights

if TYPE_CHECKING:
    from ..teacher.cache.rows import TeacherRows
    from ..teacher.cache.spec import CacheSpec


@dataclass
class TeacherTensors:
    """Cached teacher rows of n response tokens (see ``TeacherRows``), on a device."""

    ids: torch.Tensor  # int64 [n, m]
    logits: torch.Tensor  # float32 [n, m]
    counts: torch.Tensor  # float32 [n, m − head]
    tail_lse: torch.Tensor  # float32 [n, temperatures]
    spec: "CacheSpec"

    def __len__(self) -> int:
        return len(self.ids)

    def weights(self, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(weights, log-probabilities, tail log-mass) at a temperature (see ``teacher_weights``)."""
        return teacher_weights(self.logits, self.counts, self.tail_lse, self.spec, temperature)


def collate_teacher(rows: "Sequence[TeacherRows]", device: torch.device | str = "cpu") -> TeacherTensors:
    """Concatenate the rows of several examples, in order, padding the sampled tail to the widest."""
    if not rows:
        raise ValueError("no teacher rows to collate")
    spec = rows[0].spec
    if any(r.spec != spec for r in rows):
        raise UserError("logit cache: rows of different caches in one batch")
    n, width, k = sum(map(len, rows)), max(r.ids.shape[1] for r in rows), spec.head
    ids = torch.zeros(n, width, dtype=torch.long)
    logits = torch.zeros(n, width)
    counts = torch.zeros(n, width - k)
    tail_lse = torch.empty(n, len(spec.lse_temperatures))
    at = 0
    for r in rows:
        piece, m = slice(at, at + len(r)), r.ids.shape[1]
        ids[piece, :m] = torch.as_tensor(r.ids)
        logits[piece, :m] = torch.as_tensor(r.logits)
        counts[piece, : m - k] = torch.as_tensor(r.counts)
        tail_lse[piece] = torch.as_tensor(r.tail_lse)
        at += len(r)
    return TeacherTensors(*(x.to(device, non_blocking=True) for x in (ids, logits, counts, tail_lse)), spec)
