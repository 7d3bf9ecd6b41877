"""The ledger: one row a stage execution, read from the sidecars, and the problems found while reading.

A sidecar that cannot be trusted (truncated, of another schema, negative joules, in another folder than it says) is
rejected; one that repeats another is kept as a ``duplicate`` row and one whose consumed artifacts have no sidecar as
``consumes_missing``. Every such case is a :class:`Problem` and only rows of status ``ok`` (or ``orphan``, for what was
wasted) enter a sum or a figure.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from ..errors import UserError
from ..store.artifact import lacking
from ..store.sidecar import SIDECAR_NAME, parse
from .graph import TEACHER, Key, Provenance
from .outside import orphans, registered
from .rows import OUTSIDE, Problem, artifact_folders, check, is_worker, key_of, row_of, schema


def _same_record(one: dict, other: dict) -> bool:
    return all(one[k] == other[k] for k in ("total_j", "started_utc", "created_utc", "attempts", "host"))


def collect_rows(
    roots: Sequence[Path], plan_labels: Mapping[str, Mapping] | None = None
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Rows and problems of every sidecar and orphaned attempt under ``roots``."""
    rows: dict[Key, dict[str, Any]] = {}
    extra: list[dict[str, Any]] = []
    problems: list[Problem] = []
    rejected: set[Key] = set()
    counted: dict[Key, set[str]] = {}
    seen_roots: set[str] = set()
    folders = []
    for root in map(Path, roots):
        if (real := os.path.realpath(root)) not in seen_roots:
            seen_roots.add(real)
            folders.append(root)
    for root in folders:
        for key, folder in artifact_folders(root):
            path = f"{folder}/{SIDECAR_NAME}"
            try:
                with open(path, encoding="utf-8") as handle:
                    text = handle.read()
            except FileNotFoundError:
                continue  # not finished: its attempts are looked at below
            except (OSError, UnicodeDecodeError) as error:
                problems.append(Problem(path, "rejected", f"{path}: cannot be read ({error})"))
                rejected.add(key)
                continue
            try:
                sidecar = parse(text, path)
                check(sidecar, key, path)
                row = row_of(sidecar, str(folder))
            except (UserError, ValueError, TypeError) as error:
                problems.append(Problem(path, "rejected", str(error)))
                rejected.add(key)
                continue
            if (first := rows.get(key)) is None:
                rows[key] = row
                if (damaged := lacking(folder, sidecar)) is not None:
                    row["flags"] = [*row["flags"], "damaged"]
                    problems.append(Problem(path, "damaged", f"{damaged}; its joules were spent and count"))
                if key[0] in TEACHER:
                    counted[key] = {attempt.id for attempt in sidecar.attempts}
                continue
            same = _same_record(first, row)
            what = "the same record as" if same else "another execution of the artifact of"
            spent = "" if same else f"; its {_joules(row['total_j'])} were spent a second time and count as wasted"
            problems.append(
                Problem(path, "duplicate", f"{path}: {what} {first['path']}; only the first is used{spent}")
            )
            row["status"] = "duplicate"
            row["flags"] = [*row["flags"], "duplicate", *([] if same else ["made_again"])]
            extra.append(row)
    for root in folders:
        for row, problem in orphans(root, set(rows) | rejected, plan_labels or {}, counted):
            problems.append(problem)
            if row is not None:
                extra.append(row)
    problems += _link(rows)
    elsewhere, unreadable = registered(folders, rows)
    return [*rows.values(), *extra, *elsewhere], problems + unreadable


def _joules(value: float | None) -> str:
    return "unknown joules" if value is None else f"{value:.0f} J"


def _link(rows: dict[Key, dict[str, Any]]) -> list[Problem]:
    """Flag rows whose consumed artifacts have no accepted sidecar, and rows without an energy."""
    problems = []
    for row in rows.values():
        missing = [c for c in row["consumes"] if tuple(c.split("/")) not in rows]
        if missing:
            row["status"] = "consumes_missing"
            row["flags"] = [*row["flags"], "consumes_missing"]
            message = f"{row['path']}: consumed {', '.join(missing)}, which has no sidecar: it enters no figure"
            problems.append(Problem(row["path"], "consumes_missing", message))
        if row["total_j"] is None:
            reason = row["unknown_reason"] or "no reason given"
            message = f"{row['path']}: the energy is unknown ({reason})"
            problems.append(Problem(row["path"], "unknown_energy", message))
    return problems


def mark_current(rows: list[dict[str, Any]], current: Sequence[Sequence[str]] | None) -> list[Problem]:
    """Set ``current``: those listed, or without a list the newest evaluation of each run and every other row.

    Returns a problem for each listed artifact that has no row.
    """
    if current is not None:
        wanted = {tuple(item) for item in current}
        for row in rows:
            listed = key_of(row) in wanted or is_worker(row)
            row["current"] = row["status"] not in OUTSIDE and listed
        present = {(r["stage"], r["name"], r["version"]) for r in rows if r["current"] and r["status"] != "orphan"}
        return [
            Problem("/".join(key), "missing", f"{'/'.join(key)}: planned, but it has no accepted sidecar")
            for key in sorted(wanted - present)
        ]
    newest: dict[tuple, str] = {}

    def identity(row: dict) -> tuple | None:
        if row["stage"] == "evaluation":
            return ("evaluation", row["run"] or row["name"], row["suite"])
        return None

    for row in rows:
        if row["status"] not in ("orphan", *OUTSIDE) and (key := identity(row)):
            newest[key] = max(newest.get(key, ""), row["created_utc"] or "")
    for row in rows:
        key = identity(row)
        latest = key is None or row["status"] == "orphan" or row["created_utc"] == newest[key]
        row["current"] = row["status"] not in OUTSIDE and latest
    return []


def collect(
    roots: Sequence[Path],
    plan_labels: Mapping[str, Mapping] | None = None,
    current: Sequence[Sequence[str]] | None = None,
):
    """The ledger as a pandas DataFrame with the columns of ``COLUMNS``, and the list of :class:`Problem`.

    ``roots``: result folders, the teacher store among them. ``plan_labels``: "stage/name/version" → labels, for
    attempts
    that never wrote a sidecar. ``current``: (stage, name, version) of the configuration at hand.
    """
    rows, problems = collect_rows(roots, plan_labels)
    problems += mark_current(rows, current)
    return frame(rows), problems


def frame(rows: list[dict[str, Any]]):
    """Rows as a pandas DataFrame with Arrow-backed types (so that an integer stays one beside nulls)."""
    return pa.Table.from_pylist(rows, schema=schema()).to_pandas(types_mapper=pd.ArrowDtype)


def records(ledger) -> list[dict[str, Any]]:
    """Rows of a ledger frame as plain dicts (null as None)."""
    return pa.Table.from_pandas(ledger, schema=schema(), preserve_index=False).to_pylist()


def provenance(rows: Sequence[Mapping[str, Any]]) -> Provenance:
    """Provenance of the accepted rows; reuse counts over every training row, current or not."""
    accepted = [r for r in rows if r["status"] in ("ok", "consumes_missing")]
    edges = {key_of(r): [tuple(c.split("/")) for c in r["consumes"]] for r in accepted}
    runs = {key_of(r): r["run"] or "/".join(key_of(r)) for r in accepted if r["stage"] == "student_training"}
    for row in rows:
        # Trainings alone are reuse. Another workflow may have trained the very same run: a key of its own.
        if row["status"] == "elsewhere" and row["stage"] == "student_training":
            key = (row["stage"], row["name"], row["run"])
            edges[key] = [tuple(c.split("/")) for c in row["consumes"]]
            runs[key] = row["run"]
    return Provenance(edges, runs)


def problem_rows(problems: Sequence[Problem]) -> list[dict[str, str]]:
    """Problems as plain dicts."""
    return [asdict(p) for p in problems]
