"""Nucleus sampling with transformers: batched, left-padded, with a KV cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...models.packing import ignores_pads
from ...models.sources import stop_ids
from .jobs import Prompt, Raw, cut


@dataclass
class Sampling:
    """Nucleus sampling; temperature 0 is greedy. ``batch_size``: prompts at once."""

    temperature: float
    top_p: float
    batch_size: int


class TransformersEngine:
    """Answers shards of prompts with a causal LM that it holds."""

    name = "transformers"

    def __init__(self, model, tokenizer, sampling: Sampling) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.stops = stop_ids(model, tokenizer)
        self.pads = sampling.batch_size == 1 or ignores_pads(model)

    @property
    def size(self) -> int:
        """Prompts at once: one where pads would be read as text."""
        return self.sampling.batch_size if self.pads else 1

    def _options(self, room: int) -> dict[str, Any]:
        sampling = self.sampling
        options: dict[str, Any] = {
            "max_new_tokens": room,
            "min_new_tokens": None,
            "eos_token_id": self.stops,
            "pad_token_id": self.tokenizer.pad_token_id,
            "use_cache": True,
            "repetition_penalty": 1.0,
        }
        if sampling.temperature > 0:
            # top_k=0 switches off transformers' default of 50: nucleus sampling alone decides.
            options |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        else:
            options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return options

    def answer(
        self, prompts: list[Prompt], seed: int, done: Callable[[int, int, int], None] | None = None
    ) -> list[Raw]:
        """Answers in the order of ``prompts``.

        Pads stand on the left, so that every response follows its prompt directly. ``done(prompt tokens, generated
        tokens, padding)`` is called after each batch.
        """
        answers: list[Raw] = []
        device = self.model.device
        size = self.size
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for start in range(0, len(prompts), size):
                batch = prompts[start : start + size]
                width = max(len(prompt.prompt_ids) for prompt in batch)
                ids = torch.full((len(batch), width), self.tokenizer.pad_token_id, dtype=torch.long)
                mask = torch.zeros((len(batch), width), dtype=torch.long)
                for row, prompt in enumerate(batch):
                    ids[row, width - len(prompt.prompt_ids) :] = torch.tensor(prompt.prompt_ids)
                    mask[row, width - len(prompt.prompt_ids) :] = 1
                with torch.inference_mode():
                    output = self.model.generate(
                        input_ids=ids.to(device),
                        attention_mask=mask.to(device),
                        **self._options(max(prompt.room for prompt in batch)),
                    )
                made = []
                for prompt, row in zip(batch, output[:, width:].tolist(), strict=True):
                    kept, reason = cut(row[: prompt.room], self.stops)
                    made.append(Raw(prompt.id, kept, reason))
                answers += made
                if done is not None:
                    done(int(mask.sum()), sum(len(answer.ids) for answer in made), int((1 - mask).sum()))
        return answers
