"""Benchmarks of the embedded default that are answered by greedy generation and checked exactly."""

from __future__ import annotations

from typing import Any

from ..config.evaluation import Arithmetic, Instructions
from ..data.checks import check, stated_number
from ..data.generated import evaluation_items
from .generate import Completion, generate
from .result import Item, Result, summarise
from .session import Session


def _answered(
    session: Session, name: str, family: str, params: Arithmetic | Instructions
) -> list[tuple[dict, Completion]]:
    items = evaluation_items(family, params.items, params.seed)
    with session.phase(name):
        prompts = [session.prompt_ids(item["prompt"]) for item in items]
        done = generate(session, prompts, params.max_new_tokens, seed=params.seed)
    return list(zip(items, done, strict=True))


def arithmetic(session: Session, name: str, params: Arithmetic | Instructions) -> Result:
    """Share of sums whose stated number (first line: after ``=`` or ``is``) is the right one. Chance: 0."""
    rows = [
        Item(
            str(item["id"]),
            item["prompt"],
            item["answer"],
            done.text,
            float(stated_number(done.text) == item["answer"]),
            done.tokens,
            {"finish": done.finish},
        )
        for item, done in _answered(session, name, "arithmetic", params)
    ]
    return summarise(rows, 0.0)


def instructions(session: Session, name: str, params: Arithmetic | Instructions) -> Result:
    """Mean share of each item's format instructions that the answer meets.

    Chance: what the gold answers score when each is given to the next item instead of its own. An answer that ignores
    the instruction meets some of them all the same.
    """
    answered = _answered(session, name, "instructions", params)
    rows = [
        Item(
            str(item["id"]),
            item["prompt"],
            item["response"],
            done.text,
            check(item["check"], done.text),
            done.tokens,
            {"check": item["check"], "finish": done.finish},
        )
        for item, done in answered
    ]
    return summarise(rows, misplaced([item for item, _ in answered], check))


def misplaced(items: list[dict[str, Any]], check) -> float:
    """Mean over all pairs of different items of the score of one's gold answer on the other's instruction."""
    pairs = [(a, b) for a in items for b in items if a is not b]
    if not pairs:
        return 0.0
    return sum(check(a["check"], b["response"]) for a, b in pairs) / len(pairs)
