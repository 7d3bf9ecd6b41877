"""One loaded model and what every benchmark of a suite shares: prompts, batches, token counts, energy by phase."""

from __future__ import annotations

import contextlib
import gc
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..data.chat import accepted, encode
from ..errors import UserError
from ..models.flops import Operations
from ..models.sources import bare_model, stop_ids
from ..models.template import render, told
from ..store.paths import check_inside, inside
from .head import Head

#: Ends the thinking of Qwen3, DeepSeek-R1, SmolLM3, GLM-4.5 and their kin.
THINKING_END = "</think>"
THINKING_START = "<think>"


@dataclass
class Spent:
    """Wall seconds and joules of a phase; joules None with ``reason`` where they are not known."""

    seconds: float = 0.0
    joules: float | None = None
    source: str | None = None
    reason: str | None = None


@dataclass
class Session:
    """A model in eval mode, its tokenizer, and the stage's meter."""

    model: Any
    tokenizer: Any
    meter: Any
    log: Callable[[str], None]
    inputs: dict[str, Path]
    role: str  # teacher | student
    dtype: str = "auto"
    spent: dict[str, list[Spent]] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict)
    work: Path | None = None  # scratch folder
    enable_thinking: bool | None = None
    source: tuple[dict[str, Any], dict[str, Path]] | None = None  # the model's specification and the stage's inputs
    engine: Any = None  # a VllmEngine that generates in the place of the model, once ``model`` is released
    operations: Operations = field(default_factory=Operations)  # of the stage, a judge's among them

    def __post_init__(self) -> None:
        self.watched = None if self.model is None else self.operations.watch(self.model)

    @property
    def device(self):
        return self.model.device

    @cached_property
    def thinking_end(self) -> int | None:
        """The token that ends a reasoning model's thinking, where its vocabulary has one."""
        found = self.tokenizer.get_vocab().get(THINKING_END)
        return None if found is None else int(found)

    @cached_property
    def head(self) -> Head:
        return Head(self.model, self.watched)

    @cached_property
    def _bare(self) -> Any:
        """The served model without weights; None where its shape cannot be had."""
        try:
            return None if self.source is None else bare_model(*self.source)
        except (OSError, ValueError, UserError):
            return None

    def served(self, prompts: Sequence[int], answers: Sequence[int], times: int = 1) -> None:
        """Book the operations of answers that the engine made, by the lengths of prompts and answers in tokens."""
        if self._bare is None:
            self.operations.reason = "the shape of the model that the engine served is not known"
        else:
            self.operations.generated(self._bare, [*prompts] * times, [*answers] * times)

    @cached_property
    def decoder(self):
        """The model without its output layer."""
        return self.model.get_decoder() if hasattr(self.model, "get_decoder") else self.model.base_model

    @cached_property
    def stop_ids(self) -> list[int]:
        return stop_ids(self.model, self.tokenizer)

    @cached_property
    def batch_tokens(self) -> int:
        """Padded tokens a forward pass: enough to fill a GPU; on a CPU larger batches gain nothing."""
        return 16_384 if self.device.type == "cuda" else 2_048

    @property
    def cache_tokens(self) -> int:
        """Positions of a generation's key-value cache: 26 GB for 13 billion parameters in bfloat16."""
        return 32_768 if self.device.type == "cuda" else 16_384

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id

    def chat_text(self, messages: Sequence[dict[str, str]] | str) -> str:
        """A conversation (or one user turn) as the model's template writes it, up to where the answer starts."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return render(self.tokenizer, self.accepted(messages), True, self.told)

    def accepted(self, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """The messages as the model's template takes them (``data.chat.accepted``)."""
        return list(accepted(self.tokenizer, messages)[0])

    @cached_property
    def told(self) -> dict[str, Any]:
        """Arguments of the template: as in training (``models.template.told``), unless the configuration decides."""
        return told(self.tokenizer) if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that already holds its special tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def prompt_ids(self, messages: Sequence[dict[str, str]] | str) -> list[int]:
        return self.encode(self.chat_text(messages))

    def exchange(self, prompt: str, response: str) -> tuple[list[int], list[int]]:
        """(prompt tokens, response tokens with the one that ends the turn), as training encodes them."""
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        encoded = encode(self.tokenizer, messages, stops=self.stop_ids)
        if encoded is None:
            raise ValueError(f"the response {response!r} has no token")
        cut = len(encoded.prompt_ids)
        return encoded.input_ids[:cut], encoded.input_ids[cut:]

    def count(self, mask=None, **tokens: int) -> None:
        """Book tokens; ``mask`` books its ones as processed and its zeros as padding."""
        if mask is not None:
            ones = int(mask.sum())
            tokens = {"processed": ones, "padding": mask.numel() - ones, **tokens}
        for kind, n in tokens.items():
            if n:
                self.meter.add_tokens(kind, int(n))

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Spent]:
        """Book what happens inside apart, under ``name``; phases do not nest."""
        spent = Spent()
        self.spent.setdefault(name, []).append(spent)
        start = time.perf_counter()
        window = None
        try:
            with self.meter.phase(name) as window:
                yield spent
                self.synchronise()
                spent.seconds = time.perf_counter() - start
        finally:
            if not spent.seconds:
                spent.seconds = time.perf_counter() - start
            spent.joules = getattr(window, "joules", None)
            spent.source = getattr(window, "source", None)
            spent.reason = getattr(window, "reason", None)
            if spent.joules is None and not spent.reason:
                spent.reason = "the meter knows no joules of this phase"

    def scratch(self, name: str) -> Path:
        """An empty folder for a benchmark's intermediate files."""
        if self.work is None:
            raise ValueError("the session has no scratch folder")
        folder = inside(self.work, f"benchmark-{name}")
        shutil.rmtree(check_inside(self.work, folder), ignore_errors=True)
        folder.mkdir(parents=True)
        return folder.resolve()

    def release(self) -> None:
        """Give memory of a failed benchmark back to the accelerator."""
        if self.model is not None and self.device.type == "cuda":
            torch.cuda.empty_cache()

    def unload(self) -> None:
        """Let go of the model, so that another process may have its memory. What hangs on it is kept or goes too."""
        if self.model is None:
            return
        self.stop_ids  # noqa: B018  (asked of the model for the last time)
        on_gpu = self.device.type == "cuda"
        for name in ("head", "decoder"):
            self.__dict__.pop(name, None)
        self.model = None
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()

    def synchronise(self) -> None:
        """Wait for the accelerator, so that a phase ends when its work does."""
        if self.model is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
