"""What is generated, cut into shards that can be resumed, and what becomes of a raw response.

A shard is a fixed set of prompts with a seed of its own, so that a run that was killed and resumed gives the same text
as one that was not.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...data.hashing import digest, normalised, unit
from ...store.atomic import write_parquet

#: Batches in a shard: what is lost at most by a kill.
BATCHES_PER_SHARD = 4


@dataclass(frozen=True)
class Prompt:
    """A training prompt: its example's id, token ids and text, and how many tokens may follow."""

    id: str
    prompt_ids: tuple[int, ...]
    prompt: str
    room: int


@dataclass(frozen=True)
class Raw:
    """An engine's answer: token ids without what follows the end token; ``finish_reason`` is ``stop`` or ``length``."""

    id: str
    ids: list[int]
    finish_reason: str


def choose_prompts(rows: list[dict[str, Any]], n: int | None, seed: int, max_new: int, max_length: int) -> list[Prompt]:
    """The prompts to answer: ``n`` of the training rows by hash of their id (None: all), shortest first.

    Sorting by length keeps padding small. ``room`` is ``max_new`` or what ``max_length`` leaves; prompts without room
    are left out.
    """
    chosen = rows
    if n is not None and n < len(rows):
        chosen = sorted(rows, key=lambda row: digest("prompt", seed, row["id"]))[:n]
    prompts = [
        Prompt(row["id"], tuple(row["prompt_ids"]), row["prompt"], min(max_new, max_length - len(row["prompt_ids"])))
        for row in chosen
    ]
    return sorted((p for p in prompts if p.room >= 1), key=lambda p: (len(p.prompt_ids), p.id))


def shard(prompts: list[Prompt], batch_size: int) -> list[list[Prompt]]:
    """Prompts cut into shards of a few batches each."""
    size = batch_size * BATCHES_PER_SHARD
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def shard_seed(seed: int, index: int) -> int:
    """The seed of a shard: a hash, so that neighbouring seeds share nothing."""
    return int(digest("shard", seed, index)[:8], 16) & 0x7FFFFFFF


def cut(ids: list[int], stops: list[int]) -> tuple[list[int], str]:
    """Generated ids up to and including the first end token, and the finish reason."""
    for position, token in enumerate(ids):
        if token in stops:
            return ids[: position + 1], "stop"
    return ids, "length"


def save_shard(path: Path, answers: list[Raw], stops: list[int]) -> None:
    """Write a finished shard atomically, with the end tokens of its engine in its metadata."""
    schema = pa.schema(
        [("id", pa.string()), ("ids", pa.list_(pa.int32())), ("finish_reason", pa.string())],
        metadata={"stops": json.dumps(stops)},
    )
    write_parquet(path, pa.Table.from_pylist([asdict(answer) for answer in answers], schema=schema))


def load_shard(path: Path, expected: list[Prompt]) -> tuple[list[Raw], list[int]] | None:
    """A finished shard's answers and end tokens; None if absent, unreadable or of other prompts (it is redone then)."""
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
        stops = json.loads(table.schema.metadata[b"stops"])
    except (OSError, pa.ArrowException, TypeError, KeyError, ValueError):
        return None
    answers = [Raw(**row) for row in table.to_pylist()]
    if [answer.id for answer in answers] != [prompt.id for prompt in expected]:
        return None
    return answers, stops


def rows_and_counts(
    prompts: list[Prompt], answers: list[Raw], tokenizer, min_new: int, stops: list[int]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Training rows of the answers that pass, and counts of those that do not.

    Rules, in this order: ``n_empty``: no visible text; ``n_too_short``: fewer than ``min_new`` tokens before the end
    token; ``n_duplicates``: same prompt and response as an earlier row.
    """
    counts = {"n_empty": 0, "n_too_short": 0, "n_duplicates": 0, "n_length": 0}
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for prompt, answer in zip(prompts, answers, strict=True):
        text = tokenizer.decode(answer.ids, skip_special_tokens=True).strip()
        content = len(answer.ids) - int(bool(answer.ids) and answer.ids[-1] in stops)
        key = digest(normalised(prompt.prompt), normalised(text))
        if not text:
            counts["n_empty"] += 1
        elif content < min_new:
            counts["n_too_short"] += 1
        elif key in seen:
            counts["n_duplicates"] += 1
        else:
            seen.add(key)
            counts["n_length"] += int(answer.finish_reason == "length")
            rows.append(
                {
                    "id": prompt.id,
                    "prompt": prompt.prompt,
                    "response": text,
                    "input_ids": [*prompt.prompt_ids, *answer.ids],
                    "loss_mask": [0] * len(prompt.prompt_ids) + [1] * len(answer.ids),
                    "prompt_ids": list(prompt.prompt_ids),
                    "finish_reason": answer.finish_reason,
                    "n_generated": len(answer.ids),
                }
            )
    return rows, counts


def split(rows: list[dict[str, Any]], share: float, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(train, validation) by hash of the id, in order of id. Each has a row where there are two or more rows."""
    ranked = sorted(rows, key=lambda row: row["id"])
    validation = [row for row in ranked if unit("synthetic", seed, row["id"]) < share]
    if not validation and len(ranked) > 1:
        validation = [min(ranked, key=lambda row: unit("synthetic", seed, row["id"]))]
    if len(validation) == len(ranked) and len(ranked) > 1:
        validation.remove(max(ranked, key=lambda row: unit("synthetic", seed, row["id"])))
    held = {row["id"] for row in validation}
    return [row for row in ranked if row["id"] not in held], validation
