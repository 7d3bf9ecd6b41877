"""The user's own answers as a benchmark: how likely a model finds them, whether it gives them, or a judge's preference.

They are the validation rows of a configured data set, tokenised as students are trained on it, or those of a file.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ..config.evaluation import ReferenceAnswers
from ..data.chat import Conversation, encode, first_assistant
from ..data.files import files_of, read_file
from ..data.formats import Filtered, Refused, read
from ..data.hashing import normalised
from ..errors import UserError
from .alpaca import Duel, win_rate
from .generate import generate
from .gold import predict
from .harness_data import pick
from .result import Item, Result, summarise
from .session import Session


@dataclass
class Pair:
    """A question with its context, and the answer that is held to be right: as text and as token ids."""

    item_id: str
    prompt: str
    response: str
    prompt_ids: list[int]
    response_ids: list[int]

    def as_item(self) -> dict[str, Any]:
        return {"id": self.item_id, "prompt": self.prompt, "response": self.response}


def reference(session: Session, name: str, params: ReferenceAnswers) -> Result:
    """Score by ``params.score``.

    ``likelihood``: exp of the mean log-probability of the answer's tokens (the inverse of its perplexity), averaged
    over items; chance is a uniform guess over the vocabulary. ``exact_match``: share of greedy answers that are the
    reference but for case and white space; chance is the commonest reference. ``judged``: mean probability that the
    judge prefers the model's answer to the reference; chance is 0.
    """
    pairs = load(session, name, params)
    return SCORES[params.score](session, name, params, pairs)


def _likelihood(session: Session, name: str, params: ReferenceAnswers, pairs: list[Pair]) -> Result:
    with session.phase(name):
        rows = predict(
            session, [pair.as_item() for pair in pairs], [(pair.prompt_ids, pair.response_ids) for pair in pairs]
        )
    items = [
        Item(
            row.item_id,
            row.prompt,
            row.response,
            session.tokenizer.decode(row.predicted),
            math.exp(row.log_probability),
            len(row.gold),
            {"mean_log_probability": row.log_probability},
        )
        for row in rows
    ]
    return summarise(items, 1.0 / session.head.weight.shape[0])


def _exact_match(session: Session, name: str, params: ReferenceAnswers, pairs: list[Pair]) -> Result:
    with session.phase(name):
        done = generate(session, [p.prompt_ids for p in pairs], params.max_new_tokens, seed=params.seed)
    items = [
        Item(
            pair.item_id,
            pair.prompt,
            pair.response,
            answer.text,
            float(normalised(answer.text) == normalised(pair.response)),
            answer.tokens,
            {"finish": answer.finish},
        )
        for pair, answer in zip(pairs, done, strict=True)
    ]
    commonest = Counter(normalised(pair.response) for pair in pairs).most_common(1)[0][1]
    # The best constant answer; where no two references are the same there is nothing to guess by.
    return summarise(items, commonest / len(pairs) if commonest > 1 else 0.0)


def _judged(session: Session, name: str, params: ReferenceAnswers, pairs: list[Pair]) -> Result:
    return win_rate(session, name, params, [Duel(p.item_id, p.prompt, p.prompt_ids, p.response) for p in pairs])


SCORES = {"likelihood": _likelihood, "exact_match": _exact_match, "judged": _judged}


def load(session: Session, name: str, params: ReferenceAnswers) -> list[Pair]:
    """The pairs of a benchmark, ``items`` of them drawn by the seed. Raises UserError naming file and row."""
    pairs = _of_dataset(session, params.dataset) if params.dataset else _of_file(session, params)
    if not pairs:
        raise UserError(f"evaluation.benchmarks.{name}: {params.dataset or params.data} has no usable row")
    return pick(pairs, params.items, params.seed)


def _of_dataset(session: Session, dataset: str) -> list[Pair]:
    """Validation rows as the stage ``preprocess`` wrote them: the first answer of each, with all that precedes it."""
    path = Path(session.inputs[f"validation-{dataset}"]) / "validation.parquet"
    pairs = []
    for row in pq.ParquetFile(path).read().to_pylist():
        start = len(row["prompt_ids"])
        labels = row["loss_mask"][start:]
        end = start + (labels.index(0) if 0 in labels else len(labels))
        answer = row["input_ids"][start:end]
        if answer:
            pairs.append(Pair(row["id"], row["prompt"], row["response"], row["prompt_ids"], answer))
    return pairs


def conversations(data: str, format_name: str | None) -> list[tuple[str, Conversation]]:
    """(where it stands, conversation) of a file's rows, each of which must be usable: a benchmark that drops rows is
    another one. Raises UserError naming file and row."""
    found = []
    for path in files_of(data):
        for row in read_file(path):
            try:
                found.append((row.place, read(row, format_name or "messages")))
            except Filtered:
                continue
            except Refused as reason:
                raise UserError(f"{row.place}: {reason}") from None
    if not found:
        raise UserError(f"{data}: has no usable row")
    return found


def _of_file(session: Session, params: ReferenceAnswers) -> list[Pair]:
    """The first answer of each conversation, with all that precedes it."""
    pairs = []
    for place, found in conversations(params.data, params.format):
        messages = list(found.messages[: first_assistant(found.messages) + 1])
        encoded = encode(session.tokenizer, session.accepted(messages), stops=session.stop_ids)
        if encoded is None:
            raise UserError(f"{place}: its answer has no token")
        cut, ids = len(encoded.prompt_ids), encoded.input_ids
        pairs.append(Pair(found.id, found.prompt, found.response, ids[:cut], ids[cut:]))
    return pairs
