"""The teacher's cached rows as tensors, and as weights at a temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...errors import UserError
from ..weights import teacher_weights

if TYPE_CHECKING:
    from ..cache.rows import TeacherRows
    from ..cache.spec import CacheSpec


@dataclass
class TeacherTensors:
    """Cached teacher rows of n response tokens (see ``TeacherRows``), on a device."""

    ids: torch.Tensor  # int64 [n, m]
    logits: torch.Tensor  # float32 [n, m]
    counts: torch.Tensor  # float32 [n, m − head]
    tail_lse: torch.Tensor  # float32 [n, temperatures]
    spec: "CacheSpec"
    beyond: torch.Tensor | None = None  # bool [n, m]: ids that the student's output layer has no row for

    def __len__(self) -> int:
        return len(self.ids)

    def weights(self, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(weights, log-probabilities, tail log-mass) at a temperature (see ``teacher_weights``).

        What stands on ids that the student lacks is left out, and the rest scaled to the same sum.
        """
        weights, logp, log_tail = teacher_weights(self.logits, self.counts, self.tail_lse, self.spec, temperature)
        if self.beyond is None:
            return weights, logp, log_tail
        mass = torch.where(self.beyond, logp.exp(), 0.0).sum(1, keepdim=True).clamp_max(1 - 1e-6)
        before = weights.sum(1, keepdim=True)
        kept = weights.masked_fill(self.beyond, 0.0)
        kept = kept * (before / kept.sum(1, keepdim=True).clamp_min(1e-12))
        rest = torch.log1p(-mass)
        return kept, logp - rest, log_tail - rest[:, 0]


def collate_teacher(
    rows: "TeacherRows | Sequence[TeacherRows]", device: torch.device | str = "cpu", vocabulary: int | None = None
) -> TeacherTensors:
    """A batch's rows, or several of them in order, the sampled tail padded to the widest.

    ``vocabulary``: rows of the student's output layer, where the teacher's has more.
    """
    parts = list(rows) if isinstance(rows, Sequence) else [rows]
    if not parts:
        raise ValueError("no teacher rows to collate")
    spec = parts[0].spec
    if any(part.spec != spec for part in parts):
        raise UserError("logit cache: rows of different caches in one batch")

    def join(name: str, dtype: torch.dtype) -> torch.Tensor:
        pieces = [torch.as_tensor(getattr(part, name)) for part in parts]
        width = max(piece.shape[1] for piece in pieces)
        pieces = [torch.nn.functional.pad(piece, (0, width - piece.shape[1])) for piece in pieces]
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return whole.to(device, non_blocking=True).to(dtype)

    ids, beyond = join("ids", torch.long), None
    if vocabulary is not None and spec.vocab_size > vocabulary:
        beyond = ids >= vocabulary
        ids = ids.masked_fill(beyond, 0)  # their weight is 0
    return TeacherTensors(
        ids,
        join("logits", torch.float32),
        join("counts", torch.float32),
        join("tail_lse", torch.float32),
        spec,
        beyond,
    )
