"""The student with its optimiser: loaded, packed, adapted, distributed, stepped, and exported."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from .. import pipelines
from ..errors import UserError
from ..kd.losses.ce import TRITON, choose_kernel, choose_triton
from ..models import ragged
from ..models.logits import check_logits, logit_rule, output_layer
from ..models.packing import check_packing
from ..models.sources import bare_model, cast, load_model, load_tokenizer, model_dtype
from ..pipelines.base import Settings
from . import sharded
from .job import Job
from .optim import ChangeProbe, Plain, TensorByTensor, resolve_precision
from .student import Student, add_adapter

#: Tokens of a packed row at most, if several examples share it: the mask of dense attention grows with their square.
PACKED_TOKENS = 4096
RAGGED_TOKENS = 8192  # where attention takes examples of any lengths without a mask


class Learner:
    """One process's student and optimiser. Raises UserError for what in the job does not fit together.

    ``precision``: in the place of the configured one; ``scale_parameter``: see ``optim.build``.
    """

    def __init__(self, job: Job, precision: str | None = None, scale_parameter: bool = True) -> None:
        self.job, self.peers, self.training = job, job.peers, job.training
        training, peers = job.training, job.peers
        self.pipeline = pipelines.get(job.params.pipeline.kind)
        self.settings = self.pipeline.settings(job.params.pipeline)
        kernel = choose_kernel(training.liger, peers.device)
        if self.pipeline.loss == "ce":
            self.settings = replace(self.settings, ce_kernel=kernel)
        if choose_triton(training.loss_kernel, training.liger, self.pipeline.loss, peers.device):
            self.settings = replace(self.settings, ce_kernel=TRITON)
        self.precision = resolve_precision(precision or training.precision, peers.device)
        if self.precision.note and peers.leads:
            job.log(self.precision.note)
        self.split = training.sharding == "full" and peers.world > 1
        adapter = self.pipeline.lora(self.settings, training)
        self.adapted = adapter is not None
        torch.manual_seed(job.seed)
        model = self._load()
        self.vocabulary = int(output_layer(model).weight.shape[0])
        self.tokenizer = load_tokenizer(job.params.model, job.inputs)
        self.parameters = sum(p.numel() for p in model.parameters())
        if adapter is not None:
            model = add_adapter(model, adapter)
        if training.gradient_checkpointing:
            # The name changes between transformers 5 and 6.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
            if self.adapted:
                model.enable_input_require_grads()
        rule = None
        if self.split:
            rule = check_logits(self.source) if peers.leads else logit_rule(model.config)
        self.student = Student(model, self.pipeline, self.settings, self.precision.autocast, rule)
        self._pack()
        if training.compile:
            compile_layers(self.student.lm.base_model)
        pad = getattr(self.student.lm.config, "pad_token_id", None)
        self.pad_id = int(pad) if isinstance(pad, int) and 0 <= pad < self.vocabulary else 0
        self.module: Any = self.student
        if peers.world > 1:
            self._distribute()
        self.trainable = {n: p for n, p in self.student.model.named_parameters() if p.requires_grad}
        self._build_optimizer(scale_parameter)

    def _load(self) -> Any:
        """The student; without weights where they will be split, which rank 0 has in the host's memory (``source``)."""
        spec, inputs, dtype = self.job.params.model, self.job.inputs, self.precision.weights
        if not self.split:
            return load_model(spec, inputs, dtype=dtype, device=self.peers.device, for_training=True)
        if self.adapted:
            raise UserError("training.sharding: full does not go with lora (adapters fit in one process)")
        self.source = (
            load_model(spec, inputs, dtype=dtype, device="cpu", for_training=True) if self.peers.leads else None
        )
        model = cast(bare_model(spec, inputs), model_dtype(dtype)).train()
        model.config.use_cache = False
        return model

    def _pack(self) -> None:
        """Attention without a mask for packed rows, where there is one. Raises UserError if packed examples mix."""
        whole = lm = self.student.lm
        if self.split:
            lm = sharded.one_of_each_layer(whole.config, model_dtype(self.precision.weights), self.peers.device)
        # A student that samples wants masks and a cache.
        packed = self.training.packing and not self.pipeline.live_teacher
        self.ragged = packed and ragged.attend_ragged(lm, self.precision.autocast)
        if self.training.packing:
            check_packing(lm)
        self.attention = lm.config._attn_implementation
        if whole.config._attn_implementation != self.attention:
            whole.set_attn_implementation(self.attention)

    def _distribute(self) -> None:
        """Wrap the student for several processes. The wrapper averages gradients over them."""
        if self.split:
            sharded.shard(self.student, self.peers.device, self.peers.world, self.source)
            self.source = None
            return
        self.module = DistributedDataParallel(self.student, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def _build_optimizer(self, scale: bool) -> None:
        weights = list(self.trainable.values())
        stochastic = self.precision.stochastic
        gather = self.split and self.training.optimizer == "adafactor"
        if stochastic or gather:
            # Every process rounds its own part of a split weight with its own random numbers.
            seed = self.job.seed if gather or not self.split else self.job.seed + 7919 * self.peers.rank
            self.optimizer: Any = TensorByTensor(weights, self.training, seed, scale, stochastic, gather)
        else:
            self.optimizer = Plain(weights, self.training, scale)

    # --- a step --------------------------------------------------------------------------------------------------

    @property
    def packed_tokens(self) -> int:
        """Tokens of a packed row that the attention takes well."""
        return RAGGED_TOKENS if self.ragged else PACKED_TOKENS

    def no_sync(self) -> Any:
        """No exchange of gradients in the backward passes inside."""
        if self.split:
            return sharded.no_gradient_sync(self.module)
        return self.module.no_sync() if hasattr(self.module, "no_sync") else contextlib.nullcontext()

    def clip(self, limit: float | None) -> torch.Tensor:
        """Clip the gradients' global norm; returns it as it was before."""
        weights = list(self.trainable.values())
        norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        norm = sharded.full_tensor(norm)
        # On a GPU the comparison would wait for the step's whole work; on a CPU it saves a pass over the gradients.
        # NaN is for the caller to report.
        if limit is not None and (norm.is_cuda or not norm <= limit):
            torch.nn.utils.clip_grads_with_norm_(weights, limit, norm)
        return norm

    def probe(self) -> ChangeProbe:
        return ChangeProbe(self.trainable.values())

    # --- weights -------------------------------------------------------------------------------------------------

    @property
    def save_dtype(self) -> torch.dtype:
        """Of the student's files: bfloat16 unless the configuration asks for float32."""
        return torch.float32 if self.training.save_dtype == "float32" else torch.bfloat16

    def export(self) -> dict[str, torch.Tensor] | None:
        """Trained weights in the host's memory, in the dtype they will be saved in (adapters: as they are).

        All processes call it together; None in those that do not lead.
        """
        dtype = None if self.adapted else self.save_dtype
        weights = {}
        for name, weight in self.trainable.items():
            value = sharded.full_tensor(weight.detach())
            if self.peers.leads:
                weights[name] = value.to(device="cpu", dtype=dtype or value.dtype, copy=True)
        return weights if self.peers.leads else None

    def model_with(self, weights: dict[str, torch.Tensor]) -> Any:
        """The student as it will be saved, with exported weights in it. Rank 0 calls it, after training."""
        model = self.student.model
        if self.ragged:
            self.student.lm.set_attn_implementation("sdpa")  # from here on it is a model like any other
        if self.split:
            spec, inputs = self.job.params.model, self.job.inputs
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
        weights = {name: sharded.to_local(weight.detach()) for name, weight in self.trainable.items()}
        return {"weights": weights, "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What ``state_dict`` of the same process gave."""
        for name, weight in self.trainable.items():
            sharded.to_local(weight).copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])


def reference_student(precision: str, load: Callable[[str], Any]) -> Student:
    """A trained student whose passes are those of a training at ``precision``; ``load`` takes a dtype."""
    found = resolve_precision(precision, "cuda" if torch.cuda.is_available() else "cpu")
    return Student(load(found.weights), pipelines.get("sft"), Settings("sft"), found.autocast)


def compile_layers(base: Any) -> None:
    """Compile a model's layers, which share their code, rather than the whole: a fraction of the compiler's time."""
    layers = getattr(base, "layers", None)
    for module in layers if isinstance(layers, torch.nn.ModuleList) else [base]:
        module.compile(dynamic=True)
