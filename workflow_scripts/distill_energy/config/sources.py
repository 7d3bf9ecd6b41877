"""Where models and data come from."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Section


class Shape(Section):
    """What a transformer's weights measure, where there are none: rates need no more. Never part of a version."""

    model_type: str = Field(description="as transformers names the architecture, such as olmo2, llama, qwen3")
    hidden_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int | None = Field(None, gt=0, description="null: as many as attention heads")
    head_dim: int | None = Field(None, gt=0, description="null: hidden_size / num_attention_heads")
    vocab_size: int = Field(gt=0)
    max_position_embeddings: int = Field(4096, gt=0)
    tie_word_embeddings: bool = False


class HubModel(Section):
    """A model of the Hugging Face hub, by id and revision."""

    source: Literal["hub"]
    id: str
    revision: str | None = None
    parameters: int | None = Field(None, gt=0, description="for the forecast only")
    shape: Shape | None = Field(None, description="for forecast and rates only; null: as its config.json says")
    tokenizer: str | None = Field(
        None, description="hub id or folder of another tokenizer, for a base model whose own has no chat template"
    )


class FolderModel(Section):
    """A model in a local folder (config, safetensors, tokenizer)."""

    source: Literal["folder"]
    path: str
    parameters: int | None = Field(None, gt=0, description="for the forecast only")
    shape: Shape | None = Field(None, description="for forecast and rates only; null: as its config.json says")
    tokenizer: str | None = Field(
        None, description="hub id or folder of another tokenizer, for a base model whose own has no chat template"
    )


class GgufModel(Section):
    """A GGUF file that a Python package ships; converted once to a plain folder."""

    source: Literal["gguf"]
    package: str
    file: str = "*.gguf"
    parameters: int | None = Field(None, gt=0)
    tokenizer: str | None = Field(
        None, description="hub id or folder of another tokenizer, for a base model whose own has no chat template"
    )


class PrunedModel(Section):
    """A depth-pruned copy of another model: its first and last layers, embeddings kept."""

    source: Literal["pruned"]
    of: str
    layers: int = Field(gt=0)
    keep: Literal["ends", "even"] = "ends"


class RandomModel(Section):
    """A small Llama with random weights and a byte-level tokenizer, for tests and dry runs."""

    source: Literal["random"]
    layers: int = Field(2, gt=0)
    hidden: int = Field(32, gt=0)
    heads: int = Field(2, gt=0)
    vocabulary: int = Field(384, ge=260)
    seed: int = 0

    @model_validator(mode="after")
    def _heads(self) -> "RandomModel":
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden {self.hidden} is not a multiple of twice heads {self.heads} (rotary positions)")
        return self


Model = Annotated[HubModel | FolderModel | GgufModel | PrunedModel | RandomModel, Field(discriminator="source")]


class _Dataset(Section):
    max_length: int = Field(1024, gt=8)
    seed: int = 0


class GeneratedData(_Dataset):
    """The instruction set that the project generates itself (offline, seeded, deduplicated)."""

    source: Literal["generated"]
    n_train: int = Field(gt=0)
    n_validation: int = Field(gt=0)
    families: tuple[Literal["arithmetic", "text", "choice", "instructions"], ...] | None = Field(
        None, min_length=1, description="null: all"
    )


Format = Literal["tulu3", "openr1_math", "codeforces_cots", "messages", "sharegpt", "preference", "prompt_response"]
MAX_DROPPED = Field(
    None, ge=0, le=1, description="share of rows that may be refused before the stage stops; null: 0.01"
)


class HubData(_Dataset):
    """A data set of the hub, or local files in its format, streamed and sampled."""

    source: Literal["hub"]
    id: str
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    format: Format
    max_dropped: float | None = MAX_DROPPED
    n_train: int = Field(gt=0)
    n_validation: int = Field(gt=0)
    scan: int | None = Field(None, gt=0)  # rows looked at before sampling; None: all


class FileData(_Dataset):
    """Local JSON lines, CSV or Parquet files."""

    source: Literal["files"]
    path: str
    format: Format = "messages"
    max_dropped: float | None = MAX_DROPPED
    n_train: int = Field(gt=0)
    n_validation: int = Field(gt=0)


Dataset = Annotated[GeneratedData | HubData | FileData, Field(discriminator="source")]


class Teacher(Section):
    """The teacher and how its artifacts are made."""

    model: str
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    logits: "Logits" = Field(default_factory=lambda: Logits())
    generation: "Generation" = Field(default_factory=lambda: Generation())


class Logits(Section):
    """The logit cache: which parts of the teacher's distribution are kept at each response token."""

    method: Literal["topk", "sampled", "head_tail"] = "head_tail"
    head: int = Field(32, ge=0)
    tail: int = Field(64, ge=0, le=65535)
    seed: int = 0
    batch_tokens: int = Field(4096, gt=0)
    audit_examples: int = Field(8, gt=0)
    lse_temperatures: tuple[float, ...] | None = Field(
        None,
        min_length=1,
        description="at which the tail's log-sum-exp is kept, others are interpolated; null: 1, 2, 3, 4 (sampled: 1)",
    )
    proposal_temperatures: tuple[float, ...] | None = Field(
        None, min_length=1, description="whose mean the tail is drawn from, among lse_temperatures; null: the method's"
    )
    value_step: float = Field(1 / 16, gt=0, le=1, description="nats between two stored values")
    value_bits: Literal[8, 16] = Field(8, description="of a stored difference of values; 16 for a small value_step")
    shard_tokens: int = Field(131072, gt=0, description="response tokens in a shard at most, what a kill can cost")
    shard_examples: int = Field(512, gt=0)
    processes: int | None = Field(
        None,
        gt=0,
        description="that share the examples, one a GPU where the model fits one; null: as many as there are GPUs. The "
        "cache is the same, whatever their number: no part of its version",
    )

    @model_validator(mode="after")
    def _something(self) -> "Logits":
        if any(not 0 < t < math.inf for t in self.lse_temperatures or ()):
            raise ValueError("lse_temperatures must be above 0")
        if self.lse_temperatures and set(self.proposal_temperatures or ()) - set(self.lse_temperatures):
            raise ValueError("proposal_temperatures must be among lse_temperatures")
        if self.method == "topk" and self.head < 1:
            raise ValueError("method topk needs head ≥ 1")
        if self.method == "sampled" and self.tail < 1:
            raise ValueError("method sampled needs tail ≥ 1")
        return self


class Generation(Section):
    """Synthetic data: nucleus sampling by the teacher on training prompts."""

    engine: Literal["transformers", "vllm"] = "transformers"
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_new_tokens: int = Field(512, gt=0)
    min_new_tokens: int = Field(1, ge=0)
    n_prompts: int | None = Field(None, gt=0)  # None: every training prompt
    validation_share: float = Field(0.1, gt=0, lt=1)
    batch_size: int = Field(32, gt=0)
    tensor_parallel: int = Field(1, gt=0)
    seed: int = 0


Teacher.model_rebuild()
