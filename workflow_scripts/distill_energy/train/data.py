"""What a training learns from: examples of its pipeline, the validation examples, and the teacher's rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import pipelines
from ..models.fingerprint import check_made_with, tokenizer_hash
from .batching import Batch, cut_by_tokens
from .cached_teacher import CachedTeacher
from .examples import Examples, read_examples
from .job import Job
from .pairs import scored_pairs

#: The evaluation rows of every run are the same, whatever its seed.
EVALUATION_SEED = 0
PAIRED = ("chosen", "rejected", "reference")  # inputs of a pipeline that learns from pairs


class TrainingData:
    """The examples of a job, and its logit cache if the pipeline has one.

    ``tokenizer`` and ``vocabulary`` (rows of the output layer) are the student's. Raises UserError for data that was
    made with another tokenizer, and for a cache that does not fit.
    """

    def __init__(self, job: Job, tokenizer: Any, vocabulary: int) -> None:
        self.training, self.peers = job.training, job.peers
        pipeline = pipelines.get(job.params.pipeline.kind)
        inputs, rows = job.inputs, pipeline.rows
        identity = tokenizer_hash(tokenizer)
        if pipeline.pairs:
            made = [scored_pairs(*(inputs[r] for r in PAIRED), split, vocabulary) for split in ("train", "validation")]
            self.train, self.own = made
        else:
            self.train = read_examples(inputs[rows] / "train.parquet", vocabulary)
            self.own = None if rows == "data" else read_examples(inputs[rows] / "validation.parquet", vocabulary)
        self.gold = read_examples(inputs["data"] / "validation.parquet", vocabulary)
        for examples in filter(None, (self.train, self.gold, self.own)):
            hint = "; students share their teacher's tokenizer"
            check_made_with(examples.path, examples.tokenizer_hash, identity, "student", hint)
        self.teacher = None
        if pipeline.needs == "teacher_logits":
            temperature = pipeline.settings(job.params.pipeline).temperature
            folder, log = inputs["teacher_logits"], job.log if self.peers.leads else _silent
            self.teacher = CachedTeacher(folder, vocabulary, temperature, identity, log, len(tokenizer))
            self.teacher.check(self.train.ids)

    def gold_rows(self, count: int) -> Examples:
        """``count`` validation examples of the data set, the same for every pipeline, student and seed."""
        return _chosen(self.gold, count)

    def own_rows(self, count: int) -> Examples | None:
        """The pipeline's own validation examples, or None if they are the data set's."""
        return None if self.own is None else _chosen(self.own, count)

    def micro_batches(self, share: np.ndarray, packed_tokens: int) -> list[np.ndarray]:
        """This process's share of a batch (example indices), cut into micro-batches.

        Packed examples fill rows of ``micro_batch_tokens``, by default the ``packed_tokens`` that the student's
        attention takes well, so that every micro-batch is full. Without packing and without a ``micro_batch_size`` the
        share is one.
        """
        micro = self.training.micro_batch_size
        if micro is None and self.training.packing and self.peers.world == 1:
            return cut_by_tokens(share, self.train.lengths(), self.training.micro_batch_tokens or packed_tokens)
        micro = min(micro or len(share), len(share))
        return [share[i : i + micro] for i in range(0, len(share), micro)]

    def teacher_rows(self, batch: Batch) -> Any:
        """What the pipeline's loss reads beside the batch."""
        if self.teacher is None:
            return self.train.rows(batch)
        ids = [self.train.ids[i] for i in batch.index]
        return self.teacher.batch(ids, len(batch.labels), self.peers.device)


def _silent(message: str) -> None:
    """The log of a process that does not lead."""


def _chosen(examples: Examples, count: int) -> Examples:
    if count >= len(examples):
        return examples
    random = np.random.Generator(np.random.PCG64(EVALUATION_SEED))
    return examples.at(np.sort(random.permutation(len(examples))[:count]))
