"""What a benchmark yields, and the tables it becomes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..store.atomic import write_parquet


@dataclass
class Item:
    """One scored item. ``score`` is in the benchmark's unit; ``tokens`` counts what its score rests on."""

    item_id: str
    prompt: str
    answer: str
    prediction: str
    score: float
    tokens: int
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """One benchmark. ``chance`` is what a model without knowledge gets, in the unit of ``score``."""

    items: list[Item]
    score: float | None
    stderr: float | None
    chance: float | None
    notes: str | None = None  # what departs from the published protocol
    facts: dict[str, Any] = field(default_factory=dict)  # small scalars for the sidecar's results


def mean_and_stderr(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and its standard error s/√n (s with n − 1); one value has no standard error."""
    n = len(values)
    if n == 0:
        return None, None
    mean = math.fsum(values) / n
    if n == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)


def summarise(items: list[Item], chance: float | None, notes: str | None = None, **facts: Any) -> Result:
    """The benchmark's score is the mean of its items' scores, so that a bootstrap over items is one over it."""
    score, stderr = mean_and_stderr([item.score for item in items])
    return Result(items, score, stderr, chance, notes, facts)


def prompt_id(prompt: str) -> str:
    """A short name of a prompt's text, to find the same prompt elsewhere."""
    return hashlib.sha256(prompt.encode("utf-8")).hexdigest()[:16]


def best_constant(rows: Sequence[Sequence[int]]) -> float:
    """Mean over rows of the share of the one symbol that maximises it: what the best constant guess scores."""
    totals: dict[int, float] = {}
    for row in rows:
        for symbol in row:
            totals[symbol] = totals.get(symbol, 0.0) + 1.0 / len(row)
    return max(totals.values(), default=0.0) / max(len(rows), 1)


def write_items(path: Path, results: dict[str, Result]) -> None:
    """``items.parquet``: one row an item of every benchmark that did not fail."""
    schema = pa.schema(
        [
            ("benchmark", pa.string()),
            ("item_id", pa.string()),
            ("prompt_id", pa.string()),
            ("answer", pa.string()),
            ("prediction", pa.string()),
            ("score", pa.float64()),
            ("tokens", pa.int64()),
            ("extra", pa.string()),
        ]
    )
    rows = [
        {
            "benchmark": name,
            "item_id": item.item_id,
            "prompt_id": prompt_id(item.prompt),
            "answer": item.answer,
            "prediction": item.prediction,
            "score": float(item.score),
            "tokens": int(item.tokens),
            "extra": json.dumps(item.extra, default=str),
        }
        for name, result in results.items()
        for item in result.items
    ]
    write_parquet(path, pa.Table.from_pylist(rows, schema))


def write_scores(path: Path, rows: list[dict[str, Any]]) -> None:
    """``scores.parquet``: one row a benchmark of the suite, failed ones included."""
    schema = pa.schema(
        [
            ("benchmark", pa.string()),
            ("kind", pa.string()),
            ("score", pa.float64()),
            ("stderr", pa.float64()),
            ("chance", pa.float64()),
            ("n", pa.int64()),
            ("in_quality", pa.bool_()),
            ("status", pa.string()),  # ok | failed | unusable
            ("reason", pa.string()),
            ("notes", pa.string()),
            ("contaminated", pa.int64()),  # items whose prompt occurs in the training data; null: not looked at
            ("seconds", pa.float64()),
            ("joules", pa.float64()),
            ("joules_reason", pa.string()),
        ]
    )
    write_parquet(path, pa.Table.from_pylist(rows, schema))
