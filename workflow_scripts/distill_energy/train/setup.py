"""From a job to everything the loop needs: student, optimiser, data, teacher."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from .. import pipelines
from ..errors import UserError
from ..kd.losses.ce import choose_kernel
from ..models import ragged
from ..models.fingerprint import tokenizer_hash
from ..models.logits import output_layer
from ..models.packing import check_packing
from ..models.sources import cast, load_model, load_tokenizer
from . import sharded
from .batching import Batch, cut_by_tokens
from .cached_teacher import CachedTeacher
from .examples import Examples, read_examples, subset
from .job import Job
from .live_teacher import LiveTeacher
from .optim import ChangeProbe, Plain, TensorByTensor, resolve_precision
from .reference import choices
from .student import Student, add_adapter

#: Tokens of a packed row at most, if several examples share it: the mask of dense attention grows with their square.
PACKED_TOKENS = 4096
RAGGED_TOKENS = 8192  # where attention takes examples of any lengths without a mask
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
        kernel = choose_kernel(training.get("liger"), peers.device)
        if self.pipeline.loss == "ce":
            self.settings = replace(self.settings, ce_kernel=kernel)
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
        self.vocabulary = int(output_layer(model).weight.shape[0])
        self.tokenizer = load_tokenizer(job.params["model"], job.inputs)
        identity = tokenizer_hash(self.tokenizer)
        self._read_data(identity)
        self.teacher = None
        if self.pipeline.needs == "teacher_logits":
            folder, log = job.inputs["teacher_logits"], job.log if peers.leads else _silent
            tokens = len(self.tokenizer)
            self.teacher = CachedTeacher(folder, self.vocabulary, self.settings.temperature, identity, log, tokens)
            self.teacher.check(self.train.ids)
        self.live = None
        if self.pipeline.live_teacher:
            longest = int(self.train.lengths().max())
            self.live = LiveTeacher(job, model, self.tokenizer, self.settings.options, longest)
        self.parameters = sum(p.numel() for p in model.parameters())
        adapter = self.pipeline.lora(self.settings, training)
        self.adapted = adapter is not None
        if adapter is not None:
            model = add_adapter(model, adapter)
        if training["gradient_checkpointing"]:
            # The name changes between transformers 5 and 6.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
            if self.adapted:
                model.enable_input_require_grads()
        self.student = Student(model, self.pipeline, self.settings, self.precision.autocast)
        self._pack()
        if training["compile"]:
            compile_layers(self.student.lm.base_model)
        pad = getattr(self.student.lm.config, "pad_token_id", None)
        self.pad_id = int(pad) if isinstance(pad, int) and 0 <= pad < self.vocabulary else 0
        self.module: Any = self.student
        self.split = training.get("sharding") == "full" and peers.world > 1
        if peers.world > 1:
            self._distribute()
        self.trainable = {n: p for n, p in self.student.model.named_parameters() if p.requires_grad}
        self._build_optimizer()
        self.evaluation_batch_size = EVALUATION_BATCH

    def _pack(self) -> None:
        """Attention without a mask for packed rows, where there is one. Raises UserError if packed examples mix."""
        lm = self.student.lm
        # A student that samples wants masks and a cache.
        packed = self.training["packing"] and not self.pipeline.live_teacher
        self.ragged = packed and ragged.attend_ragged(lm, self.precision.autocast)
        if self.training["packing"]:
            check_packing(lm)
        self.attention = lm.config._attn_implementation

    def _read_data(self, tokenizer: str) -> None:
        inputs, rows = self.job.inputs, self.pipeline.rows
        self.train = read_examples(inputs[rows] / "train.parquet", self.vocabulary)
        self.gold = read_examples(inputs["data"] / "validation.parquet", self.vocabulary)
        self.own = None
        if rows != "data":
            self.own = read_examples(inputs[rows] / "validation.parquet", self.vocabulary)
        for examples in filter(None, (self.train, self.gold, self.own)):
            made_by = examples.tokenizer_hash
            if made_by not in (None, tokenizer):
                raise UserError(
                    f"{examples.path}: made with the tokenizer {made_by[:12]}, the student's is {tokenizer[:12]}; "
                    "students share their teacher's tokenizer"
                )

    def _distribute(self) -> None:
        """Wrap the student for several processes. The wrapper averages gradients over them."""
        if self.split:
            if self.adapted:
                raise UserError("training.sharding: full does not go with lora (adapters fit in one process)")
            sharded.shard(self.student, torch.device(self.peers.device).type, self.peers.world)
            return
        self.module = DistributedDataParallel(self.student, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def _build_optimizer(self) -> None:
        weights = list(self.trainable.values())
        scale = self.choices.scale_parameter
        stochastic = self.precision.stochastic
        gather = self.split and self.training["optimizer"] == "adafactor"
        if stochastic or gather:
            # Every process rounds its own part of a split weight with its own random numbers.
            seed = self.job.seed if gather or not self.split else self.job.seed + 7919 * self.peers.rank
            self.optimizer: Any = TensorByTensor(weights, self.training, seed, scale, stochastic, gather)
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

    def pieces(self, share: np.ndarray) -> list[np.ndarray]:
        """This process's share of a batch (example indices), cut into micro-batches.

        Packed examples fill rows of ``micro_batch_tokens`` (by default what the attention takes well), so that every
        micro-batch is full. Without packing and without a ``micro_batch_size`` the share is one.
        """
        micro, tokens = self.training["micro_batch_size"], self.training.get("micro_batch_tokens")
        if micro is None and self.training["packing"] and self.peers.world == 1:
            limit = tokens or (RAGGED_TOKENS if self.ragged else PACKED_TOKENS)
            return cut_by_tokens(share, self.train.lengths(), limit)
        micro = min(micro or len(share), len(share))
        return [share[i : i + micro] for i in range(0, len(share), micro)]

    def rolled_out(
        self, step: int, labels: int, pieces: list[tuple[Batch, Any]]
    ) -> tuple[int, list[tuple[Batch, Any]]]:
        """A step's labels and micro-batches: those made ready, or what the student answers with a live teacher."""
        if self.live is None:
            return labels, pieces
        return self.live.rollout(step, self.train, pieces, self.pad_id, self.training["packing"])

    def teacher_rows(self, batch: Batch) -> Any:
        """What the pipeline's loss reads beside the batch."""
        if self.teacher is None:
            return None
        ids = [self.train.ids[i] for i in batch.index]
        return self.teacher.batch(ids, len(batch.labels), self.peers.device)

    def no_sync(self) -> Any:
        """No exchange of gradients in the backward passes inside."""
        if self.split:
            return sharded.no_gradient_sync(self.module)
        return self.module.no_sync() if hasattr(self.module, "no_sync") else contextlib.nullcontext()

    def clip(self, limit: float | None) -> torch.Tensor:
        """Clip the gradients' global norm; returns it as it was before."""
        weights = list(self.trainable.values())
        norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        norm = sharded.whole(norm)
        # On a GPU the comparison would wait for the step's whole work; on a CPU it saves a pass over the gradients.
        # NaN is for the caller to report.
        if limit is not None and (norm.is_cuda or not norm <= limit):
            torch.nn.utils.clip_grads_with_norm_(weights, limit, norm)
        return norm

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

    def barrier(self) -> None:
        """Wait for all processes, where each holds a part of the weights."""
        if self.split:
            torch.distributed.barrier()

    def probe(self) -> ChangeProbe:
        return ChangeProbe(self.trainable.values())

    # --- weights -------------------------------------------------------------------------------------------------

    @property
    def save_dtype(self) -> torch.dtype:
        """Of the student's files: bfloat16 unless the configuration asks for float32."""
        return torch.float32 if self.training.get("save_dtype") == "float32" else torch.bfloat16

    def export(self) -> dict[str, torch.Tensor] | None:
        """Trained weights in the host's memory, in the dtype they will be saved in (adapters: as they are).

        All processes call it together; None in those that do not lead.
        """
        dtype = None if self.adapted else self.save_dtype
        weights = {}
        for name, weight in self.trainable.items():
            value = sharded.whole(weight.detach())
            if self.peers.leads:
                weights[name] = value.to(device="cpu", dtype=dtype or value.dtype, copy=True)
        return weights if self.peers.leads else None

    def model_with(self, weights: dict[str, torch.Tensor]) -> Any:
        """The student as it will be saved, with exported weights in it. Rank 0 calls it, after training."""
        model = self.student.model
        if self.ragged:
            self.student.lm.set_attn_implementation("sdpa")  # from here on it is a model like any other
        if self.split:
            spec, inputs = self.job.params["model"], self.job.inputs
            model = load_model(spec, inputs, dtype=self.precision.weights, device="cpu", for_training=True)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name in weights:
                    weight.copy_(weights[name])
        if self.adapted:
            model = model.merge_and_unload()
        return cast(model, self.save_dtype)

    def state_dict(self) -> dict[str, Any]:
        """This process's weights and optimiser state, for a checkpoint."""
        weights = {name: sharded.local(weight.detach()) for name, weight in self.trainable.items()}
        live = {} if self.live is None else {"live": self.live.state_dict()}
        return {"weights": weights, "optimizer": self.optimizer.state_dict(), **live}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What ``state_dict`` of the same process gave."""
        for name, weight in self.trainable.items():
            sharded.local(weight).copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.live is not None:
            self.live.load_state_dict(state.get("live"))


def compile_layers(base: Any) -> None:
    """Compile a model's layers, which share their code, rather than the whole: a fraction of the compiler's time."""
    layers = getattr(base, "layers", None)
    for module in layers if isinstance(layers, torch.nn.ModuleList) else [base]:
        module.compile(dynamic=True)


def _silent(message: str) -> None:
    """The log of a process that does not lead."""


def _chosen(examples: Examples, count: int) -> Examples:
    if count >= len(examples):
        return examples
    random = np.random.Generator(np.random.PCG64(EVALUATION_SEED))
    return subset(examples, np.sort(random.permutation(len(examples))[:count]))
