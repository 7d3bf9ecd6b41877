"""Forward passes that share what all prompts of a benchmark begin with: the system turn goes through the model once."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from .batching import pad
from .session import Session

LEAST = 4  # tokens below which sharing is not worth a copy of the cache


def common_length(rows: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all rows begin with, at most one less than the shortest row."""
    limit = min(len(row) for row in rows) - 1
    low, high = min(rows), max(rows)
    same = 0
    while same < limit and low[same] == high[same]:
        same += 1
    return same


def cache_argument(decoder: Any) -> str:
    """What this transformers release calls the key-value cache in ``forward``."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


def cache_of(output: Any) -> Any:
    """The key-value cache of a model's output."""
    return output["cache"] if "cache" in output else output["past_key_values"]


def is_plain(cache: Any) -> bool:
    """Whether every layer of a cache keeps every position (no sliding window, no recurrent state)."""
    layers = getattr(cache, "layers", None)
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


class Prefixed:
    """Runs batches of rows after their common beginning, which is computed once."""

    def __init__(self, session: Session, rows: Sequence[Sequence[int]]) -> None:
        self.session = session
        self.length = common_length(rows) if len(rows) > 1 else 0
        self.argument = cache_argument(session.decoder)
        if self.length < LEAST:
            self.length = 0
            return
        ids = torch.tensor([rows[0][: self.length]], device=session.device)
        session.count(processed=self.length)
        self.cache = cache_of(session.decoder(input_ids=ids, use_cache=True))
        if not is_plain(self.cache):
            # A sliding window counts the padding between the common beginning and the rest as positions.
            self.length = 0

    def run(self, rows: Sequence[Sequence[int]], left: bool = False, keep: bool = False):
        """(hidden states (rows, width, hidden), mask (rows, length + width), cache or None).

        ``rows`` are whole; the hidden states are those after the common beginning, padded on the right or the left.
        """
        session = self.session
        ids, mask = pad([row[self.length :] for row in rows], session.pad_id, session.device, left=left)
        session.count(mask)
        positions = self.length + (mask.cumsum(-1) - 1).clamp(min=0)
        extra: dict[str, Any] = {}
        if self.length:
            cache = copy.deepcopy(self.cache)
            cache.reorder_cache(torch.zeros(len(rows), dtype=torch.long, device=session.device))
            extra[self.argument] = cache
            mask = torch.cat([mask.new_ones(len(rows), self.length), mask], dim=1)
        out = session.decoder(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=keep or bool(self.length), **extra
        )
        return out.last_hidden_state, mask, cache_of(out) if keep else None
