"""Studies that share a results folder: artifacts by version in one place, answers each in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..ledger.graph import Key
from ..store.atomic import write_text

#: Below the results folder; a study without a name has its answer in the results folder itself.
FOLDER = "experiments"
#: In a study's answer folder: [[stage, name, version], …] of its last start.
PLAN = "plan.json"


def results_of(answer: Path) -> Path:
    """The results folder, which holds the artifacts, of a study's answer folder."""
    answer = Path(answer)
    return answer.parent.parent if answer.parent.name == FOLDER else answer


def answer_folders(results: Path) -> list[Path]:
    """Folders that may hold a study's answer."""
    return [Path(results), *sorted(p for p in (Path(results) / FOLDER).glob("*") if p.is_dir())]


def register(answer: Path, keys: Iterable[Key]) -> None:
    """Say what a study lists when it starts: its runs are its own before it has an answer."""
    write_text(Path(answer) / PLAN, json.dumps(sorted(keys)))


def listed(folder: Path, options_of) -> list[Sequence[str]]:
    """What a study lists, by its last start or else its last aggregate."""
    try:
        return json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return options_of(folder).get("current") or []


def listed_elsewhere(answer: Path, options_of) -> list[Key]:
    """What the other studies beside ``answer`` list. ``options_of``: folder → the options of its last aggregate."""
    found: set[Key] = set()
    for folder in answer_folders(results_of(answer)):
        if folder.resolve() != Path(answer).resolve():
            found |= {(str(s), str(n), str(v)) for s, n, v in listed(folder, options_of)}
    return sorted(found)


def mark_elsewhere(rows: Iterable[dict[str, Any]], others: Collection[Sequence[str]], current: Collection[Key]) -> None:
    """Give rows of other studies alone the status ``elsewhere``: their joules belong to their own study's answer. Here
    their trainings count as reuse of what both consume, as those of another workflow on a shared teacher store do."""
    theirs = {tuple(key) for key in others} - {tuple(key) for key in current}
    for row in rows:
        if (row["stage"], row["name"], row["version"]) in theirs and row["status"] != "elsewhere":
            row["status"] = "elsewhere"
            row["flags"] = [*row["flags"], "elsewhere"]


def compare(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of two summaries side by side, matched by teacher, data set, pipeline, hyperparameters and student.

    Each: ``label``, for either side (``a``, ``b``) ``e_kwh`` (one-off), ``q``, ``n_star`` (None where the side lacks
    the group or the figure) and ``n_star_status``, ``energy_ratio`` (b/a) and ``q_difference`` (b − a)
    with ``reason`` where they are None.
    """

    def keyed(rows):
        return {
            tuple(row[k] for k in ("teacher", "dataset", "pipeline", "hyperparameters", "student")): row for row in rows
        }

    left, right = keyed(one), keyed(other)
    if not left or not right:
        raise UserError("compare: a summary without rows")
    found = []
    for key in [*left, *(k for k in right if k not in left)]:
        a, b = left.get(key), right.get(key)
        row: dict[str, Any] = {"label": (a or b)["label"]}
        for side, it in (("a", a), ("b", b)):
            row |= {
                f"{side}_e_kwh": it and it["e_oneoff_kwh"],
                f"{side}_q": it and it["q"],
                f"{side}_n_star": it and it["n_star"],
                f"{side}_n_star_status": "baseline" if it and it["is_baseline"] else it and it["n_star_status"],
            }
        row |= _difference(a, b)
        found.append(row)
    return found


def _difference(a: dict[str, Any] | None, b: dict[str, Any] | None) -> dict[str, Any]:
    """Ratio of energies and difference of Q, or why there is none."""
    if a is None or b is None:
        return {"energy_ratio": None, "q_difference": None, "reason": f"only in {'A' if b is None else 'B'}"}
    ratio = None
    reason = None
    if a["execution"] != b["execution"]:
        reason = "energies of different execution classes are not compared"
    elif a["e_oneoff_kwh"] and b["e_oneoff_kwh"] is not None:
        ratio = b["e_oneoff_kwh"] / a["e_oneoff_kwh"]
    else:
        reason = "an energy is unknown"
    difference = None if a["q"] is None or b["q"] is None else b["q"] - a["q"]
    return {"energy_ratio": ratio, "q_difference": difference, "reason": reason}
