"""Which examples make which batch, in which order, and how a batch becomes tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from .examples import Examples

#: Batches in a pool whose examples are sorted by length: enough for little padding, few enough to stay random.
POOL_BATCHES = 50


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int, bucketed: bool = True) -> np.ndarray:
    """Indices [batches, batch_size] of one epoch; a pure function of its arguments.

    The examples are shuffled, cut into pools, sorted by length within a pool and cut into batches, whose order is
    shuffled in turn. Examples that do not fill a last batch are left out of this epoch (other ones in the next). A set
    smaller than one batch is repeated to fill it.
    """
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    n = len(lengths)
    order = random.permutation(n)
    if n < batch_size:
        return np.resize(order, (1, batch_size))
    order = order[: n - n % batch_size]
    if bucketed:
        pool = POOL_BATCHES * batch_size
        parts = [order[i : i + pool] for i in range(0, len(order), pool)]
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    batches = order.reshape(-1, batch_size)
    return batches[random.permutation(len(batches))]


class Sampler:
    """The batch of any optimiser step, so that a position is one integer and resuming needs nothing else."""

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, bucketed: bool = True) -> None:
        self.lengths, self.batch_size, self.seed, self.bucketed = lengths, batch_size, seed, bucketed
        self.per_epoch = max(1, len(lengths) // batch_size)
        self._epoch = -1
        self._batches: Any = None

    def batch(self, step: int) -> np.ndarray:
        """Indices [batch_size] of the examples of optimiser step ``step`` (from 0)."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._batches = epoch_batches(self.lengths, self.batch_size, self.seed, epoch, self.bucketed)
            self._epoch = epoch
        return self._batches[position]


def cut_by_tokens(index: np.ndarray, lengths: np.ndarray, limit: int) -> list[np.ndarray]:
    """Cut examples, in order, into groups of at most ``limit`` tokens each (a longer example is a group of its own)."""
    cuts, total = [], 0
    for place, length in enumerate(lengths[index]):
        if place and total + length > limit:
            cuts.append(place)
            total = 0
        total += int(length)
    return np.split(index, cuts)


@dataclass
class Batch:
    """A micro-batch on a device.

    ``input_ids`` and ``position_ids`` [rows, length]. ``before`` [labels]: flat positions whose hidden state predicts
    the labels, example by example; ``labels`` [labels]. ``starts`` [sequences + 1] int32: where each sequence begins in
    the flattened rows, and their end; ``longest`` sequence. ``processed`` real tokens, ``padding`` the others.
    """

    input_ids: Tensor
    position_ids: Tensor
    before: Tensor
    labels: Tensor
    starts: Tensor
    longest: int
    processed: int
    padding: int
    index: np.ndarray
    lengths: list[int]  # of its sequences, tokens


def collate(examples: Examples, index: np.ndarray, pad_id: int, packed: bool, device: str = "cpu") -> Batch:
    """Examples at ``index`` as one micro-batch.

    Packed: one row without padding; positions start at 0 with each example, from which transformers builds a mask that
    keeps them apart (or calls variable-length attention). Else one row an example, padded on the right: no label row
    ever attends to the right, so causal attention needs no padding mask.
    """
    spans = [(int(examples.offsets[i]), int(examples.offsets[i + 1])) for i in examples.members(index)]
    lengths = [stop - start for start, stop in spans]
    total, longest = sum(lengths), max(lengths)
    shape = (1, total) if packed else (len(spans), longest)
    ids = np.full(shape[0] * shape[1], pad_id, dtype=np.int64)
    positions = np.zeros_like(ids) if packed else np.tile(np.arange(longest), len(spans))
    before = []
    labels = []
    place = 0
    for row, ((start, stop), length) in enumerate(zip(spans, lengths, strict=True)):
        if not packed:
            place = row * longest
        ids[place : place + length] = examples.tokens[start:stop]
        if packed:
            positions[place : place + length] = np.arange(length)
        where = np.flatnonzero(examples.labels[start:stop])
        before.append(place + where - 1)
        labels.append(examples.tokens[start:stop][where])
        place += length

    def tensor(array: np.ndarray) -> Tensor:
        value = torch.from_numpy(array)
        return value.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else value

    return Batch(
        input_ids=tensor(ids.reshape(shape)),
        position_ids=tensor(positions.reshape(shape)),
        before=tensor(np.concatenate(before).astype(np.int64)),
        labels=tensor(np.concatenate(labels).astype(np.int64)),
        starts=tensor(np.cumsum([0, *(lengths if packed else [longest] * len(spans))]).astype(np.int32)),
        longest=longest,
        processed=total,
        padding=shape[0] * shape[1] - total,
        index=np.asarray(index),
        lengths=lengths,
    )
