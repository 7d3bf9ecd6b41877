"""Where each joule went: every execution's energy in exactly one place, so that the places add up to what was spent.

The places (docs/accounting.md): ``own``, a kept run's training and evaluations; ``shared``, what several runs need
(prerun, preprocessing, teacher artifacts, the teacher's evaluation, contamination), in equal parts to the kept runs
that consumed it; ``selection``, runs of a sweep that were not kept and what only they consumed; ``abandoned``, what no
configuration lists any more; ``wasted``, attempts that did not complete, artifacts made twice, attempts without any.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from typing import Any

from .graph import Key, Provenance
from .rows import counts, is_worker, key_of

PLACES = ("own", "shared", "selection", "abandoned", "wasted")
SHARED = "shared"
#: Within each place: loading the programs, loading models, the work itself, evaluation during training, writing.
PHASES = ("start", "load", "compute", "evaluate", "write")

Row = Mapping[str, Any]


def consumers(rows: Sequence[Row], provenance: Provenance) -> dict[Key, set[Key]]:
    """Artifact → the training runs that needed it: by provenance, and for the two that decide no content by rule.

    The teacher's evaluation is Q's reference for every current run of that teacher, and of teachers that have none. A
    current prerun that no provenance names is every current run's; a warm process (``prerun/worker``) served them all.
    """
    accepted = [r for r in rows if r["status"] in ("ok", "consumes_missing")]
    trainings = [r for r in accepted if r["stage"] == "student_training"]
    found: dict[Key, set[Key]] = defaultdict(set)
    for run in trainings:
        for key in provenance.needs(key_of(run)):
            found[key].add(key_of(run))
    current = [r for r in trainings if r["current"]]
    evaluated = {
        r["teacher"] for r in accepted if r["stage"] == "evaluation" and r["role"] == "teacher" and r["current"]
    }
    named = {key for key in found if key[0] == "prerun"}
    for row in accepted:
        key = key_of(row)
        if row["stage"] == "evaluation":
            models = [tuple(c.split("/")) for c in row["consumes"] if c.startswith("student_training/")]
            if models:
                found[key].update(models)
                for needed in provenance.closure(key):  # what an evaluation reads beside the model
                    if needed[0] == "contamination":
                        found[needed].update(models)
            elif row["role"] == "teacher":
                scaled = (r for r in current if r["teacher"] == row["teacher"] or r["teacher"] not in evaluated)
                found[key].update(key_of(r) for r in scaled if row["current"])
        elif is_worker(row):
            found[key].update(key_of(r) for r in current)
        elif row["stage"] == "prerun" and row["current"] and key not in named:
            served = {run for prerun in named for run in found[prerun]}
            found[key].update(key_of(r) for r in current if key_of(r) not in served)
    return found


def allocate(rows: Sequence[Row], kept: Set[Key], provenance: Provenance) -> list[dict[str, Any]]:
    """Rows of ``where_it_went``: stage, name, version, place, phase, run ("stage/name/version" of the kept run that
    bears it, or None) and joules. Their joules sum to those of all attempts (None where an execution's energy is
    unknown). ``phase`` is one of ``PHASES``, or None where attempts that did not complete are not told apart."""
    needed_by = consumers(rows, provenance)
    out: list[dict[str, Any]] = []

    def put(row: Row, place: str, joules: float | None, run: Key | None = None, shares=None) -> None:
        where = {"stage": row["stage"], "name": row["name"], "version": row["version"], "place": place}
        where["run"] = "/".join(run) if run else None
        if joules is None:
            out.append({**where, "phase": None, "joules": None})
        elif joules > 0:
            for phase, share in (shares or {None: 1.0}).items():
                if share > 0:
                    out.append({**where, "phase": phase, "joules": share * joules})

    current = {key_of(r) for r in rows if r["current"]}
    for row in rows:
        if not counts(row):
            continue  # another workflow's, or a copy of a record that is counted
        total = row["total_j"]
        if total is None:
            put(row, "wasted" if row["status"] == "orphan" else _place(row, kept, current, needed_by)[0], None)
            continue
        if row["status"] in ("orphan", "duplicate"):
            put(row, "wasted", total)
            continue
        wasted = min(row["wasted_j"] or 0.0, total)
        put(row, "wasted", wasted, _bearer(row, kept, needed_by))
        place, bearers = _place(row, kept, current, needed_by)
        shares = phase_shares(row, total - wasted)
        for run in bearers or [None]:
            put(row, place, (total - wasted) / max(len(bearers), 1), run, shares)
    return out


def phase_shares(row: Row, useful: float) -> dict[str, float]:
    """Phase → its share of an execution's useful joules, adding up to 1. A phase whose joules are unknown is computing,
    as is what no phase names."""
    parts = {name: row.get(f"{name}_j") or 0.0 for name in PHASES if name != "compute"}
    named = math.fsum(parts.values())
    if useful <= 0:
        return {"compute": 1.0}
    whole = max(useful, named)  # readings between two ticks are interpolated: no more than all of it
    shares = {name: value / whole for name, value in parts.items()}  # a reciprocal of the least joules is infinite
    return shares | {"compute": 1.0 - math.fsum(shares.values())}


def _bearer(row: Row, kept: Set[Key], needed_by: Mapping[Key, set[Key]]) -> Key | None:
    """The kept run whose own an execution is, if it is one's."""
    if row["stage"] == "student_training":
        return key_of(row) if key_of(row) in kept else None
    if row["stage"] == "evaluation" and row["role"] != "teacher":
        return next(iter(sorted(needed_by.get(key_of(row), set()) & set(kept))), None)
    return None


def _place(row: Row, kept: Set[Key], current: Set[Key], needed_by: Mapping[Key, set[Key]]) -> tuple[str, list[Key]]:
    """(place, the kept runs that bear it in equal parts)."""
    key, needs = key_of(row), needed_by.get(key_of(row), set())
    owned = row["stage"] == "student_training" or (row["stage"] == "evaluation" and row["role"] != "teacher")
    if owned:
        runs = {key} if row["stage"] == "student_training" else needs
        if not row["current"]:
            return "abandoned", []
        if runs & kept:
            return "own", sorted(runs & kept)[:1]
        return ("selection" if runs & current else "abandoned"), []
    if bearers := sorted(needs & kept):
        return SHARED, bearers
    if needs & current:
        return "selection", []
    return (SHARED if row["current"] else "abandoned"), []


def totals(places: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Σ joules by place, in the order of ``PLACES``; None where one is unknown."""
    found: dict[str, list[float | None]] = {place: [] for place in PLACES}
    for item in places:
        found[item["place"]].append(item["joules"])
    return {place: None if None in values else math.fsum(values) for place, values in found.items()}


def by_phase(places: Sequence[Mapping[str, Any]]) -> dict[str | None, float | None]:
    """Σ joules by phase, in the order of ``PHASES``, then of what is not told apart (None). None: one is unknown."""
    found: dict[str | None, list[float | None]] = {phase: [] for phase in (*PHASES, None)}
    for item in places:
        found[item["phase"]].append(item["joules"])
    return {phase: None if None in values else math.fsum(values) for phase, values in found.items()}
