"""Finished benchmarks of a suite that was killed: kept in the stage's scratch folder, so that a retry goes on there.

Only the costly kinds are kept. The folder belongs to one version of the artifact, so what lies there has the same
model, items and judge; the energy that was spent on it is in the attempt that was killed.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from ..store.atomic import write_text
from .result import Item, Result
from .session import Session, Spent

KEPT = ("lm_eval", "alpaca_eval", "mt_bench_101", "reference")


def _path(work: Path, name: str) -> Path:
    return work / f"finished-{name}.json"


def keep(session: Session, name: str, kind: str, result: Result) -> None:
    """Write a finished benchmark's result and what its phases spent."""
    if kind not in KEPT or session.work is None:
        return
    spent = {key: [asdict(w) for w in windows] for key, windows in session.spent.items() if key == name}
    write_text(_path(session.work, name), json.dumps({"result": asdict(result), "spent": spent}, default=str))


def kept(session: Session, name: str, kind: str) -> Result | None:
    """The result of an earlier attempt, its phases booked in the session; None if there is none that can be read."""
    if kind not in KEPT or session.work is None:
        return None
    try:
        data = json.loads(_path(session.work, name).read_text(encoding="utf-8"))
        result = Result(**{**data["result"], "items": [Item(**item) for item in data["result"]["items"]]})
        spent = {key: [Spent(**window) for window in windows] for key, windows in data["spent"].items()}
    except (OSError, ValueError, TypeError, KeyError):
        return None
    session.spent.update(spent)
    return result
