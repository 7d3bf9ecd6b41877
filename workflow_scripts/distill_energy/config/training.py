"""How students are trained. One section for every pipeline, so that all regimes share it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from .base import Section


class Lora(Section):
    rank: int = Field(16, gt=0)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class Reference(Section):
    """Choices of the paper's harness, each of which may be reproduced alone (see ``train/reference.py``)."""

    scale_parameter_by_kind: bool = False  # Adafactor's relative step in distillation only
    bf16_weights: bool = False  # no float32 copy, rounding to nearest
    frequent_evaluation: bool = False  # distillation evaluates 16 times as often
    schedule_in_micro_batches: bool = False  # a cosine 16 times too long
    stop_on_two_rises: bool = False  # instead of patience and epsilon
    no_stop_in_kd: bool = False  # distillation goes on after it stopped
    last_weights: bool = False  # instead of the best
    unnormalised_loss: bool = False  # sums in distillation, means of micro-batches elsewhere

    @classmethod
    def all(cls, on: bool) -> "Reference":
        """Every choice on, or none."""
        return cls.model_validate(dict.fromkeys(cls.model_fields, on))


class Training(Section):
    """The paper's recipe by default (Adafactor, cosine with warm-up, early stopping at ε = 2e-3)."""

    optimizer: Literal["adafactor", "adamw"] = "adafactor"
    learning_rate: float = Field(5e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(100, ge=0)
    max_steps: int = Field(gt=0)
    batch_size: int = Field(4, gt=0)  # examples an optimiser step (effective batch)
    micro_batch_size: int | None = Field(None, gt=0)  # None: batch_size
    micro_batch_tokens: int | None = Field(None, gt=0)  # of a packed row; None: 8192 without a dense mask, else 4096
    gradient_clip: float | None = Field(1.0, gt=0)
    precision: Literal["bf16_autocast", "bf16_stochastic", "bf16", "fp32"] = "bf16_autocast"
    eval_every: int = Field(50, gt=0)
    patience: int = Field(3, gt=0)
    epsilon: float = Field(2e-3, ge=0)
    checkpoint_every: int = Field(100, gt=0)
    packing: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    liger: bool | None = None  # Liger's fused cross-entropy; None: where CUDA and the package are there
    loss_kernel: Literal["chunks", "triton"] | None = Field(
        None, description="triton: own kernels for cross-entropy and distillation on CUDA, not measured; null: chunks"
    )
    lora: Lora | None = None
    reference_faithful: bool | Reference | None = None  # reproduce the choices of the paper's harness
    processes: int | None = Field(None, gt=0)  # data-parallel processes a node; None: one
    nodes: int | None = Field(None, gt=0)  # nodes of a SLURM job to train on; None: one
    sharding: Literal["none", "full"] | None = None  # full: weights and optimiser split over processes (FSDP)
    save_dtype: Literal["bfloat16", "float32"] | None = None  # of the student's files; None: bfloat16

    @model_validator(mode="after")
    def _micro(self) -> "Training":
        micro = self.micro_batch_size
        if micro is not None and self.batch_size % micro:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch_size {micro}")
        return self


#: Keys of a pipeline that may be swept, beside every key of ``training``.
SWEEPABLE = {"alpha", "temperature", "max_new_tokens"}
OPTIONS = "options."  # and every option of the pipeline's kind, by this prefix


class Swept(Section):
    """What a pipeline may set or sweep beside the keys of ``training``."""

    alpha: float | None = Field(None, ge=0, le=1)
    temperature: float | None = Field(None, gt=0)
    max_new_tokens: int | None = Field(None, gt=0)


class Pipeline(Swept):
    """A way to make a student. ``sweep`` expands to one run for each combination of its lists; an option of its kind is
    swept as ``options.NAME``."""

    kind: str
    dataset: str | None = None
    students: tuple[str, ...] | None = Field(None, min_length=1)  # None: all students
    teachers: tuple[str, ...] | None = Field(None, min_length=1)  # None: all teachers, where it learns from one
    training: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    sweep: dict[str, tuple[Any, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> "Pipeline":
        fields = set(Training.model_fields)
        for key in self.training:
            if key not in fields:
                raise ValueError(f"training.{key} is not one of {', '.join(sorted(fields))}")
        for key, values in self.sweep.items():
            if key not in fields | SWEEPABLE and not key.startswith(OPTIONS):
                known = ", ".join(sorted(fields | SWEEPABLE))
                raise ValueError(f"sweep.{key} is not one of {known}, {OPTIONS}NAME")
            if not values:
                raise ValueError(f"sweep.{key} is empty")
            for value in values if key in SWEEPABLE else ():
                try:
                    Swept.model_validate({key: value})
                except ValidationError as error:
                    raise ValueError(f"sweep.{key}: {error.errors()[0]['msg']} (found {value!r})") from None
        return self
