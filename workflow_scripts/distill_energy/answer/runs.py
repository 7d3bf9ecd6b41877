"""Energy of each run by stage, from the ledger's rows and their provenance."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from ..ledger.graph import TEACHER, Key, Provenance
from ..ledger.places import consumers
from ..ledger.rows import key_of

Row = Mapping[str, Any]

#: Parts of a run's energy that other runs may share, and those that are its own.
SHARED_PARTS = ("prerun", "preprocess", "teacher")
OWN_PARTS = ("student", "evaluation")
PARTS = (*SHARED_PARTS, *OWN_PARTS)


@dataclass
class Run:
    """One run's energy in joules; None is unknown, for the reasons in ``unknown``.

    ``whole``: part → joules, everything whole. ``shares``: part → joules, each execution divided by the kept runs that
    consumed it (own parts are whole there too).
    """

    row: Row
    whole: dict[str, float | None]
    shares: dict[str, float | None]
    reuse: int | None  # N, the smallest of its teacher artifacts; None without a teacher artifact
    evaluations: list[Row] = field(default_factory=list)
    parts: dict[str, list[Row]] = field(default_factory=dict)  # part → the executions counted in it
    unknown: list[str] = field(default_factory=list)
    continued: frozenset[Key] = frozenset()  # trainings that it starts from
    borrowed: frozenset[Key] = frozenset()  # what they needed and it did not: charged to it, no further consumer

    @property
    def key(self) -> Key:
        return key_of(self.row)

    @property
    def teacher(self) -> float | None:
        return self.whole["teacher"]

    @property
    def student(self) -> float | None:
        return self.whole["student"]

    def total(self, view: str) -> float | None:
        """Joules by view: ``oneoff`` (everything whole), ``amortised`` (shared things over the kept runs that consumed
        them), ``marginal`` (shared things free)."""
        if view == "marginal":
            return _sum([self.whole[part] for part in OWN_PARTS])
        return _sum(list((self.whole if view == "oneoff" else self.shares).values()))

    @property
    def members(self) -> list[Row]:
        """Every execution counted in the one-off total."""
        return [row for rows in self.parts.values() for row in rows]

    def part(self, name: str, column: str) -> float | None:
        """Σ of a ledger column over the executions of a part; None if one is unknown or the part is."""
        values = [row[column] for row in self.parts[name]]
        return None if self.whole[name] is None or any(v is None for v in values) else math.fsum(values)

    def training(self, view: str = "oneoff") -> float | None:
        """Preprocess, teacher and student, what T* counts as training, with the shared ones as the view counts them."""
        shared = {"oneoff": self.whole, "amortised": self.shares}.get(view)
        parts = [0.0, 0.0] if shared is None else [shared["preprocess"], shared["teacher"]]
        return _sum([*parts, self.whole["student"]])


def _sum(values: Sequence[float | None]) -> float | None:
    return None if any(v is None for v in values) else math.fsum(values)


def energy_sum(keys: Sequence[Key], rows: Mapping[Key, Row], unknown: list[str]) -> float | None:
    """Σ joules of executions; None if one is missing or unknown, whose name goes into ``unknown``."""
    values = []
    for key in keys:
        row = rows.get(key)
        if row is None:
            unknown.append(f"{'/'.join(key)} has no sidecar")
        elif row["total_j"] is None:
            unknown.append(f"{'/'.join(key)}: {row['unknown_reason'] or 'energy unknown'}")
        else:
            # An artifact that was damaged and made again is paid once here; the other time is wasted.
            values.append(row["total_j"] - (row["remade_j"] or 0.0))
            continue
        values.append(None)
    return _sum(values)


def build_runs(rows: Sequence[Row], provenance: Provenance) -> list[Run]:
    """The current runs with their energies, shares not yet set (see ``share_out``).

    ``prerun`` is that of the run's provenance or, since it decides no content, the current ones. The evaluations of a
    run are those that consumed its model; one lacking a suite that another run has makes its E_eval unknown. The
    teacher's own evaluation, which only gives Q its scale, is in no view of a run, but in its campaign.
    """
    accepted = {key_of(r): r for r in rows if r["status"] in ("ok", "consumes_missing")}
    current = [r for r in accepted.values() if r["current"]]
    by_model: dict[Key, list[Row]] = defaultdict(list)
    for row in current:
        if row["stage"] == "evaluation":
            for item in row["consumes"]:
                if item.startswith("student_training/"):
                    by_model[tuple(item.split("/"))].append(row)
    suites = {r["suite"] for rs in by_model.values() for r in rs}
    needs: dict[Key, list[Key]] = defaultdict(list)
    for artifact, runs in consumers(rows, provenance).items():
        for run in runs:
            needs[run].append(artifact)
    return [
        _run(row, accepted, provenance, needs[key_of(row)], by_model.get(key_of(row), []), suites)
        for row in current
        if row["stage"] == "student_training"
    ]


def _run(row, accepted, provenance: Provenance, needs: list[Key], evaluations, suites) -> Run:
    key = key_of(row)
    unknown: list[str] = []
    continued = provenance.continued(key)
    before = frozenset().union(*(provenance.closure(k) for k in continued)) - continued
    borrowed = before - set(needs)
    needs = [*needs, *(k for k in borrowed if k[0] != "prerun")]  # one host's idle baseline serves it already
    by_stage: dict[str, list[Key]] = defaultdict(list)
    for item in sorted(needs):
        by_stage[item[0]].append(item)
    teachers = [key for stage in TEACHER for key in by_stage[stage]]
    found = {
        "prerun": by_stage["prerun"],
        "preprocess": by_stage["preprocess"],
        # A student that sampled for the artifact is part of what the artifact cost.
        "teacher": [*teachers, *by_stage["student_training"]],
        "student": [*sorted(continued), key],
        "evaluation": [key_of(r) for r in evaluations],
    }
    whole = {part: energy_sum(keys, accepted, unknown) for part, keys in found.items()}
    lacking = sorted(suites - {r["suite"] for r in evaluations})
    if lacking or not suites:
        what = ", ".join(str(s) for s in lacking) or "every suite"
        unknown.append(f"{'/'.join(key)}: not evaluated on {what}")
        whole["evaluation"] = None
    return Run(
        row=row,
        whole=whole,
        shares=dict(whole),
        reuse=min((provenance.reuse(k) for k in teachers if k not in borrowed), default=None),
        evaluations=evaluations,
        parts={part: [accepted[k] for k in keys if k in accepted] for part, keys in found.items()},
        unknown=unknown,
        continued=continued,
        borrowed=borrowed,
    )


def share_out(runs: Sequence[Run], kept: Set[Key]) -> None:
    """Set each run's ``shares``: an execution divided by the kept runs that need it, and the run itself.

    Runs that were not kept don't make a kept one cheaper: nothing is credited that is not charged in the comparison.
    """
    count: dict[Key, int] = defaultdict(int)
    for run in runs:
        if run.key in kept:
            for part in SHARED_PARTS:
                for key in {key_of(row) for row in run.parts[part]} - run.borrowed:
                    count[key] += 1
    for run in runs:
        extra = 0 if run.key in kept else 1
        for part in SHARED_PARTS:
            if run.whole[part] is not None:
                shared = [(r["total_j"] - (r["remade_j"] or 0.0), key_of(r)) for r in run.parts[part]]
                run.shares[part] = math.fsum(
                    joules / max(count[key] + (0 if key in run.borrowed else extra), 1) for joules, key in shared
                )
