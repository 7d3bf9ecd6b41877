"""From a job to everything the loop needs: student, optimiser, data, teacher."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch

from ..errors import UserError
from ..models.sources import load_model, load_tokenizer
from . import pipelines
from .batching import Batch
from .examples import Examples, read_examples, subset
from .job import Job
from .optim import ChangeProbe, Plain, StochasticRounding, resolve_precision
from .pipelines.base import StudentFacts
from .reference import choices
from .student import Student, add_adapter

#: Examples in a batch without gradients: activations are not kept, so more of them fit.
EVALUATION_BATCH = 8
#: The evaluation rows of every run are the same, whatever its seed.
EVALUATION_SEED = 0


class Setup:
    """One process's objects. Raises UserError for anything in the job that does not fit together."""

    def __init__(self, job: Job) -> None:
        self.job, self.peers = job, job.peers
        training, peers = job.training, job.peers
        self.training = training
        self.pipeline = pipelines.get(job.params["pipeline"]["kind"])
        self.settings = self.pipeline.settings(job.params["pipeline"])
        self.choices = choices(training, self.pipeline.kind)
        self.precision = resolve_precision(self.choices.precision(training["precision"]), peers.device)
        if self.precision.note and peers.leads:
            job.log(self.precision.note)
        if training["batch_size"] % peers.world:
            raise UserError(
                f"training.batch_size {training['batch_size']} is not a multiple of its {peers.world} processes"
            )
        torch.manual_seed(job.seed)
        model = load_model(
            job.params["model"], job.inputs, dtype=self.precision.weights, device=peers.device, for_training=True
        )
        self.vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self._read_data()
        self.tokenizer = load_tokenizer(job.params["model"], job.inputs)
        facts = StudentFacts(job.inputs, self.vocabulary, self._tokenizer_hash(), job.log if peers.leads else _silent)
        self.teacher = self.pipeline.teacher(self.settings, facts)
        if self.teacher is not None:
            self.teacher.check(self.train.ids)
        self.parameters = sum(p.numel() for p in model.parameters())
        adapter = self.pipeline.lora(self.settings, training)
        self.adapted = adapter is not None
        if adapter is not None:
            model = add_adapter(model, adapter)
        if training["gradient_checkpointing"]:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if self.adapted:
                model.enable_input_require_grads()
        self.student = Student(model, self.pipeline, self.settings, self.precision.autocast)
        if training["compile"]:
            self.student.lm.base_model.compile(dynamic=True)
        pad = getattr(self.student.lm.config, "pad_token_id", None)
        self.pad_id = int(pad) if isinstance(pad, int) and 0 <= pad < self.vocabulary else 0
        self.module: Any = self.student
        if peers.world > 1:
            self._distribute()
        self.trainable = {n: p for n, p in self.student.model.named_parameters() if p.requires_grad}
        self._build_optimizer()
        self.evaluation_batch_size = EVALUATION_BATCH

    def _read_data(self) -> None:
        inputs, rows = self.job.inputs, self.pipeline.rows
        self.train = read_examples(inputs[rows] / "train.parquet", self.vocabulary)
        self.gold = read_examples(inputs["data"] / "validation.parquet", self.vocabulary)
        self.own = None
        if rows != "data":
            self.own = read_examples(inputs[rows] / "validation.parquet", self.vocabulary)

    def _tokenizer_hash(self) -> str | None:
        """Needed only to compare it with a cache's."""
        if self.pipeline.needs != "teacher_logits":
            return None
        from ..teacher.cache.fingerprint import tokenizer_hash

        return tokenizer_hash(self.tokenizer)

    def _distribute(self) -> None:
        """Wrap the student for several processes. The wrapper averages gradients over them."""
        from torch.nn.parallel import DistributedDataParallel

        self.module = DistributedDataParallel(self.student, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def _build_optimizer(self) -> None:
        weights = list(self.trainable.values())
        scale = self.choices.scale_parameter
        if self.precision.stochastic:
            self.optimizer: Any = StochasticRounding(weights, self.training, self.job.seed, scale)
        else:
            self.optimizer = Plain(weights, self.training, scale)

    # --- evaluation rows -----------------------------------------------------------------------------------------

    def gold_rows(self, count: int) -> Examples:
        """``count`` validation examples of the data set, the same for every pipeline, student and seed."""
        return _chosen(self.gold, count)

    def own_rows(self, count: int) -> Examples | None:
        """The pipeline's own validation examples, or None if they are the data set's."""
        return None if self.own is None else _chosen(self.own, count)

    def evaluation_rounds(self, rows: int, size: int) -> int:
        """Batches an evaluation over ``rows`` examples takes in each process."""
        largest_share = math.ceil(rows / self.peers.world)
        return math.ceil(largest_share / size)

    # --- a step --------------------------------------------------------------------------------------------------

    def micro_batch_size(self, share: int) -> int:
        """Examples in one forward pass of this process."""
        return min(self.training["micro_batch_size"] or share, share)

    def teacher_rows(self, batch: Batch) -> Any:
        """What the pipeline's loss reads beside the batch."""
        if self.teacher is None:
            return None
        ids = [self.train.ids[i] for i in batch.index]
        return self.teacher.batch(ids, len(batch.labels), self.peers.device)

    def no_sync(self) -> Any:
        """No exchange of gradients in the backward passes inside."""
        return self.module.no_sync() if hasattr(self.module, "no_sync") else contextlib.nullcontext()

    def clip(self, limit: float | None) -> torch.Tensor:
        """Clip the gradients' global norm; returns it as it was before."""
        weights = list(self.trainable.values())
        return torch.nn.utils.clip_grad_norm_(weights, limit if limit is not None else float("inf"), foreach=True)

    def reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the processes."""
        if self.peers.world > 1:
            torch.distributed.all_reduce(values)
        return values

    def reduce_counts(self, *counts: int) -> tuple[int, ...]:
        """Sum integers over the processes."""
        if self.peers.world == 1:
            return counts
        total = self.reduce(torch.tensor(counts, dtype=torch.int64, device=self.peers.device))
        return tuple(total.tolist())

    def agree(self, decision: bool) -> bool:
        """The leading process's decision, in every process."""
        if self.peers.world == 1:
            return decision
        value = torch.tensor([int(decision)], device=self.peers.device)
        torch.distributed.broadcast(value, 0)
        return bool(value.item())

    def probe(self) -> ChangeProbe:
        return ChangeProbe(self.trainable.values())

    # --- weights -------------------------------------------------------------------------------------------------

    @property
    def save_dtype(self) -> torch.dtype:
        """Of the student's files: bfloat16 unless the configuration asks for float32."""
        return torch.float32 if self.training.get("save_dtype") == "float32" else torch.bfloat16

    def export(self) -> dict[str, torch.Tensor]:
        """Trained weights in the host's memory, in the dtype they will be saved in (adapters: as they are)."""
        dtype = None if self.adapted else self.save_dtype
        return {name: _copy(weight, dtype) for name, weight in self.trainable.items()}

    @torch.no_grad()
    def restore(self, weights: dict[str, torch.Tensor]) -> None:
        """Put exported weights back."""
        for name, weight in self.trainable.items():
            weight.copy_(weights[name])

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimiser, whole, for a checkpoint."""
        return {"weights": {n: w.detach() for n, w in self.trainable.items()}, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.restore(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])


def _silent(message: str) -> None:
    """The log of a process that does not lead."""


def _copy(weight: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return weight.detach().to(device="cpu", dtype=dtype or weight.dtype, copy=True)


def _chosen(examples: Examples, count: int) -> Examples:
    import numpy as np

    if count >= len(examples):
        return examples
    random = np.random.Generator(np.random.PCG64(EVALUATION_SEED))
    return subset(examples, np.sort(random.permutation(len(examples))[:count]))
