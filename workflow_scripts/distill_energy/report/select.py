"""Which rows a figure shows where a sweep or a large campaign has more than an eye can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def headline(summary: Sequence[Row]) -> list[Row]:
    """One row for each pipeline, student, data set and teacher: of a sweep, the setting with the best Q (where no Q is
    known, the one whose training took least)."""
    best: dict[tuple, Row] = {}
    for row in summary:
        key = (row["teacher"], row["dataset"], row["pipeline"], row["student"])
        if key not in best or _rank(row) > _rank(best[key]):
            best[key] = row
    chosen = {row["group"] for row in best.values()}
    return [row for row in summary if row["group"] in chosen]


def _rank(row: Row) -> tuple[bool, float, float]:
    trained = row["e_student_kwh"]
    return row["q"] is not None, row["q"] or 0.0, -trained if trained is not None else float("-inf")


def omitted_note(summary: Sequence[Row], shown: Sequence[Row]) -> str:
    """A sentence on what :func:`headline` left out, or an empty text."""
    count = len(summary) - len(shown)
    return f"Of each sweep the setting with the best Q is shown; {count} others are in the tables." if count else ""
