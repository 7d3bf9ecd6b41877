"""Gold-token accuracy and agreement with the teacher, from one teacher-forced forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..config.evaluation import Agreement, GoldAccuracy
from ..errors import UserError
from ..store.atomic import write_parquet
from .batching import by_length
from .prefix import Prefixed
from .result import Item, Result, best_constant, summarise
from .session import Session

PREDICTIONS = "predictions.parquet"


@dataclass
class Forced:
    """One held-out item under teacher forcing: the gold response's tokens and the model's arg max at each of them."""

    item_id: str
    prompt: str
    response: str
    gold: list[int]
    predicted: list[int]
    log_probability: float  # mean over the response's tokens, nats


def forced(session: Session, name: str, params: GoldAccuracy | Agreement) -> list[Forced]:
    """Arg max predictions on the gold items, computed once for all benchmarks of the suite that ask for the same ones.

    The phase, and so the energy, is that of the first.
    """
    key = ("gold", params.items, params.seed)
    if key not in session.memo:
        from ..data.generated import evaluation_items

        with session.phase(name):
            session.memo[key] = predict(session, evaluation_items(*key))
    return session.memo[key]


def predict(
    session: Session, items: Sequence[dict[str, Any]], pairs: Sequence[tuple[list[int], list[int]]] | None = None
) -> list[Forced]:
    """Teacher-forced arg max at each response token of ``items`` (``id``, ``prompt``, ``response``). ``pairs``: their
    (prompt ids, response ids) where they are tokenised already."""
    if pairs is None:
        pairs = [session.exchange(item["prompt"], item["response"]) for item in items]
    prompts, responses = [p for p, _ in pairs], [r for _, r in pairs]
    # The last token predicts nothing that is scored, so it is not fed.
    rows = [p + r[:-1] for p, r in zip(prompts, responses, strict=True)]
    done: dict[int, Forced] = {}
    with torch.inference_mode():
        prefixed = Prefixed(session, prompts)
        skip = prefixed.length
        for batch in by_length([len(row) - skip for row in rows], session.batch_tokens):
            hidden, _, _ = prefixed.run([rows[i] for i in batch])
            spans = [(len(prompts[i]) - 1 - skip, len(responses[i])) for i in batch]
            picked = torch.cat([hidden[row, start : start + n] for row, (start, n) in enumerate(spans)])
            targets = torch.tensor([t for i in batch for t in responses[i]], device=picked.device)
            best, normaliser = session.head.summary(picked)
            gains = (session.head.logits_of(picked, targets) - normaliser).split([n for _, n in spans])
            for i, prediction, gain in zip(batch, best.split([n for _, n in spans]), gains, strict=True):
                item = items[i]
                done[i] = Forced(
                    str(item["id"]),
                    item["prompt"],
                    item["response"],
                    responses[i],
                    prediction.tolist(),
                    float(gain.mean()),
                )
    return [done[i] for i in range(len(items))]


def share(left: Sequence[int], right: Sequence[int]) -> float:
    """Share of positions at which two sequences of equal length agree."""
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(left)


def gold_accuracy(session: Session, name: str, params: GoldAccuracy | Agreement) -> Result:
    """Share of an item's gold response tokens that the arg max predicts, averaged over items.

    Chance: the best constant guess, i.e. the most frequent token.
    """
    rows = forced(session, name, params)
    items = [
        Item(
            row.item_id,
            row.prompt,
            row.response,
            session.tokenizer.decode(row.predicted),
            share(row.predicted, row.gold),
            len(row.gold),
            {"mean_log_probability": row.log_probability},
        )
        for row in rows
    ]
    return summarise(items, best_constant([row.gold for row in rows]))


def agreement(session: Session, name: str, params: GoldAccuracy | Agreement) -> Result:
    """Share of an item's gold positions on which the arg max is the teacher's, averaged over items.

    The teacher agrees with itself (score 1). Chance: the best constant guess of the teacher's predictions.
    """
    rows = forced(session, name, params)
    teacher = read_predictions(session.inputs, name) if session.role != "teacher" else None
    items, references = [], []
    for row in rows:
        if teacher is None:
            reference = row.predicted
        else:
            if row.item_id not in teacher:
                raise UserError(f"evaluation.benchmarks.{name}: the teacher's evaluation lacks item {row.item_id!r}")
            gold, reference = teacher[row.item_id]
            if gold != row.gold:
                raise ValueError("the student's tokenizer is not the teacher's: token agreement is not defined")
        references.append(reference)
        score = share(row.predicted, reference)
        text = session.tokenizer.decode
        items.append(Item(row.item_id, row.prompt, text(reference), text(row.predicted), score, len(reference)))
    return summarise(items, best_constant(references))


def write_predictions(path: Path, rows: dict[str, list[Forced]]) -> None:
    """The arg max predictions by benchmark, for the students' ``agreement``."""
    tokens = pa.list_(pa.int32())
    schema = pa.schema([("benchmark", pa.string()), ("item_id", pa.string()), ("gold", tokens), ("predicted", tokens)])
    table = [
        {"benchmark": name, "item_id": row.item_id, "gold": row.gold, "predicted": row.predicted}
        for name, items in rows.items()
        for row in items
    ]
    write_parquet(path, pa.Table.from_pylist(table, schema))


def read_predictions(inputs: dict[str, Path], name: str) -> dict[str, tuple[list[int], list[int]]]:
    """Item id → (gold tokens, the teacher's predictions) of benchmark ``name``. Raises UserError if there is none."""
    if "teacher_evaluation" not in inputs:
        raise UserError(f"evaluation.benchmarks.{name}: agreement needs the teacher's evaluation of the same suite")
    path = Path(inputs["teacher_evaluation"]) / PREDICTIONS
    if not path.is_file():
        raise UserError(f"{path}: missing; the teacher's own {name} failed (see its scores.parquet)")
    rows = pq.ParquetFile(path).read().to_pylist()
    found = {row["item_id"]: (row["gold"], row["predicted"]) for row in rows if row["benchmark"] == name}
    if not found:
        raise UserError(f"{path}: holds no predictions of benchmark {name!r}")
    return found
