"""What belongs to no artifact of this workflow: attempts that led to none, and other workflows' runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..energy import attempts_of
from ..errors import UserError
from ..store.sidecar import ATTEMPT_NAME, Attempt, read, total, wall_seconds
from ..store.teacher_store import consumers
from .graph import Key
from .rows import (
    COLUMNS,
    Problem,
    artifact_folders,
    check,
    component_sums,
    key_of,
    label_columns,
    row_of,
    subfolders,
    sum_known,
)


def read_attempts(folder: Path) -> list[Attempt]:
    """The attempts journalled in ``attempts/<stage>/<name>/<version>/``, and those that others measured."""
    recorded = [Attempt.model_validate(found["attempt"]) for found in _recorded(folder)]
    return sorted([*attempts_of(folder), *recorded], key=lambda attempt: attempt.start_utc)


def _recorded(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob(f"*/{ATTEMPT_NAME}"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def orphans(
    root: Path, known: set[Key], labels: Mapping[str, Mapping], counted: Mapping[Key, set[str]] | None = None
) -> Iterator[tuple[dict | None, Problem]]:
    """Rows of attempts that never led to an artifact: energy that was spent and wasted.

    ``counted``: ids of the attempts in a teacher artifact's sidecar. Others beside it are of a workflow that failed
    before another one, with which it shares the artifact, made it.
    """
    counted = counted or {}
    for key, folder in artifact_folders(root / "attempts"):
        taken = counted.get(key)
        if key in known and (taken is None or not set(subfolders(str(folder))) - taken):
            continue
        name = "/".join(key)
        try:
            attempts = [a for a in read_attempts(folder) if a.id not in (taken or ())]
        except UserError as error:
            yield None, Problem(str(folder), "rejected", str(error))
            continue
        except Exception as error:  # a damaged journal must not stop the answer; it is named instead
            yield None, Problem(str(folder), "rejected", f"{folder}: the attempts cannot be read ({error})")
            continue
        if not attempts:
            continue
        if all(a.outcome == "running" for a in attempts):
            yield None, Problem(str(folder), "running", f"{name}: an attempt is still running and is not counted yet")
            continue
        meant = labels.get(name) or next((found["labels"] for found in _recorded(folder)), {})
        row = _orphan_row(key, attempts, str(folder), meant)
        outcomes = ", ".join(sorted({a.outcome for a in attempts}))
        unknown = f"an unknown energy ({row['unknown_reason']})"
        spent = unknown if row["total_j"] is None else f"{row['total_j']:.0f} J"
        message = (
            f"{name}: {len(attempts)} attempt(s) ({outcomes}) spent {spent} without an artifact: counted as wasted"
        )
        yield row, Problem(str(folder), "orphan", message)


def _orphan_row(key: Key, attempts: list[Attempt], path: str, labels: Mapping[str, Any]) -> dict[str, Any]:
    totals = [total(a.components) for a in attempts]
    gross = sum_known([t[0] for t in totals])
    row: dict[str, Any] = dict.fromkeys(name for name, _ in COLUMNS)
    row |= label_columns(labels)
    row |= {
        "stage": key[0],
        "name": key[1],
        "version": key[2],
        "status": "orphan",
        "current": False,
        "consumes": [],
        "flags": ["orphan"],
        "total_j": gross,
        "wasted_j": gross,
        "source": "unavailable" if gross is None else _weakest([t[2] for t in totals]),
        "unknown_reason": next((t[3] for t in totals if t[0] is None), None) if gross is None else None,
        "wall_s": wall_seconds(attempts),
        "attempts": len(attempts),
        "host": attempts[-1].host,
        "started_utc": attempts[0].start_utc,
        "path": path,
    }
    for kind in ("gpu", "cpu", "dram"):
        row[f"{kind}_j"] = sum_known([component_sums(a.components, kind)[0] for a in attempts])
    return row


def _weakest(sources: Sequence[str]) -> str:
    return "estimated" if "estimated" in sources else "measured"


def registered(
    folders: Sequence[Path], rows: Mapping[Key, Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Runs of other workflows that registered with a teacher store as consumers, and copies that cannot be read.

    Their energy belongs to their own workflow's ledger; here they only count as reuse. A copy of a run that ``rows``
    holds itself is left out.
    """
    found: dict[tuple, dict[str, Any]] = {}
    problems = []
    for folder in folders:
        for path in consumers(folder):
            try:
                sidecar = read(path)
                check(sidecar, (sidecar.stage, sidecar.name, sidecar.version), str(path))
                if sidecar.stage != "student_training":
                    raise UserError(f"{path}: a consumer is a training, not {sidecar.stage}")
                row = row_of(sidecar, str(path))
            except (UserError, ValueError, TypeError) as error:
                problems.append(Problem(str(path), "rejected", str(error)))
                continue
            own = rows.get(key_of(row))
            if own is not None and own["started_utc"] == row["started_utc"]:
                continue
            attempt = sidecar.attempts[0].id
            row |= {"status": "elsewhere", "flags": ["elsewhere"], "run": f"{row['run']}@{attempt}"}
            found[(*key_of(row), attempt)] = row
    return list(found.values()), problems
