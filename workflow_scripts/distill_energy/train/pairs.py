"""Pairs of answers to one prompt, the chosen one before the rejected one, as a training takes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from ..errors import UserError
from ..kd.losses.dpo import ReferenceRows
from .batching import Batch
from .examples import Examples, read_examples, subset

#: Columns of the artifact ``reference_logprobs``: log-probabilities in nats, summed over an answer's labels, and the
#: labels of each.
SCORES = ("chosen_logprob", "rejected_logprob")
LABELS = ("chosen_labels", "rejected_labels")


@dataclass
class Pairs(Examples):
    """Pair i is the sequences 2i (chosen) and 2i + 1 (rejected); ``ids`` are the pairs', ``reference`` [pairs, 2] their
    log-probabilities under the reference model, NaN where they are not computed yet."""

    reference: np.ndarray | None = None

    def members(self, index: np.ndarray) -> np.ndarray:
        return np.stack([2 * np.asarray(index), 2 * np.asarray(index) + 1], 1).reshape(-1)

    def lengths(self) -> np.ndarray:
        return super().lengths().reshape(-1, 2).sum(1)

    def label_counts(self) -> np.ndarray:
        return self.sequence_labels.reshape(-1, 2).sum(1)

    def terms(self, labels: int, examples: int) -> int:
        return examples

    @cached_property
    def sequence_labels(self) -> np.ndarray:
        """Labels of each sequence [2·pairs]."""
        return super().label_counts()

    def at(self, index: np.ndarray) -> Pairs:
        return replace(subset(self, index), reference=self.reference[np.asarray(index)])

    def rows(self, batch: Batch) -> ReferenceRows:
        """What the loss reads beside a batch of these pairs."""
        counts = self.sequence_labels[self.members(batch.index)]
        return ReferenceRows(torch.from_numpy(self.reference[batch.index]), counts.tolist())


def read_pairs(chosen: Path, rejected: Path, split: str, vocabulary: int) -> Pairs:
    """The pairs of a split: the teacher's answers of that split for which the other has an answer in either split.

    Prompts with equal answers are left out: they state no preference. Raises UserError where no pair is left, or where
    two answers are not to the same prompt.
    """
    ours = read_examples(chosen / f"{split}.parquet", vocabulary)
    theirs = [read_examples(rejected / f"{name}.parquet", vocabulary) for name in ("train", "validation")]
    for other in theirs:
        if None not in (ours.tokenizer_hash, other.tokenizer_hash) and ours.tokenizer_hash != other.tokenizer_hash:
            raise UserError(f"{other.path}: made with another tokenizer than {ours.path}")
    place = {name: (other, i) for other in theirs for i, name in enumerate(other.ids)}
    ids, tokens, labels = [], [], []
    for i, name in enumerate(ours.ids):
        if name not in place:
            continue
        first, second = _sequence(ours, i), _sequence(*place[name])
        if np.array_equal(first[0], second[0]):
            continue
        prompts = [row[: int(np.flatnonzero(mask)[0])] for row, mask in (first, second)]
        if not np.array_equal(*prompts):
            raise UserError(f"{ours.path}: example {name!r} answers another prompt than in {place[name][0].path}")
        ids.append(name)
        tokens += [first[0], second[0]]
        labels += [first[1], second[1]]
    if not ids:
        raise UserError(f"{ours.path}: no answer differs from one to the same prompt in {rejected}: there are no pairs")
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in tokens])]).astype(np.int64)
    unknown = np.full((len(ids), 2), np.nan)
    return Pairs(ids, np.concatenate(tokens), np.concatenate(labels), offsets, ours.path, ours.tokenizer_hash, unknown)


def scored_pairs(chosen: Path, rejected: Path, reference: Path, split: str, vocabulary: int) -> Pairs:
    """As ``read_pairs``, with the reference's log-probabilities. Raises UserError where those are of other pairs."""
    pairs, path = read_pairs(chosen, rejected, split, vocabulary), reference / f"{split}.parquet"
    try:
        table = pq.read_table(path, columns=["id", *SCORES, *LABELS], partitioning=None)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    counts = np.stack([table[name].to_numpy() for name in LABELS], 1)
    if table["id"].to_pylist() != pairs.ids or not np.array_equal(counts.reshape(-1), pairs.sequence_labels):
        raise UserError(f"{path}: its log-probabilities are of other pairs than {chosen} and {rejected} hold")
    return replace(pairs, reference=np.stack([table[name].to_numpy() for name in SCORES], 1))


def _sequence(examples: Examples, i: int) -> tuple[np.ndarray, np.ndarray]:
    span = slice(examples.offsets[i], examples.offsets[i + 1])
    return examples.tokens[span], examples.labels[span]
