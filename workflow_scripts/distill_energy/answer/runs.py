"""Energy of each run by stage, from the ledger's rows and their provenance."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..ledger.graph import TEACHER, Key, Provenance
from ..ledger.rows import key_of

Row = Mapping[str, Any]


@dataclass
class Run:
    """One run's energy in joules; None is unknown, for the reasons in ``unknown``."""

    row: Row
    prerun: float | None
    preprocess: float | None
    teacher: float | None
    teacher_share: float | None  # Σ E_artifact / N_artifact
    student: float | None
    evaluation: float | None
    reuse: int | None  # the smallest N of its teacher artifacts; None without a teacher artifact
    evaluations: list[Row] = field(default_factory=list)
    parts: dict[str, list[Row]] = field(default_factory=dict)  # part of E_total → the executions counted in it
    unknown: list[str] = field(default_factory=list)

    def total(self, view: str) -> float | None:
        """Joules by view: ``oneoff`` (teacher whole), ``amortised`` (teacher over its real N), ``marginal`` (free)."""
        teacher = {"oneoff": self.teacher, "amortised": self.teacher_share, "marginal": 0.0}[view]
        parts = (self.prerun, self.preprocess, teacher, self.student, self.evaluation)
        return None if any(p is None for p in parts) else math.fsum(parts)

    @property
    def members(self) -> list[Row]:
        """Every execution counted in the one-off total."""
        return [row for rows in self.parts.values() for row in rows]

    def part(self, name: str, column: str) -> float | None:
        """Σ of a ledger column over the executions of a part of E_total; None if one is unknown or the part is."""
        values = [row[column] for row in self.parts[name]]
        return None if getattr(self, name) is None or any(v is None for v in values) else math.fsum(values)

    @property
    def training(self) -> float | None:
        """Preprocess, teacher (whole) and student: what T* counts as training."""
        parts = (self.preprocess, self.teacher, self.student)
        return None if any(p is None for p in parts) else math.fsum(parts)


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
            values.append(row["total_j"])
            continue
        values.append(None)
    return None if any(v is None for v in values) else math.fsum(values)


def build_runs(rows: Sequence[Row], provenance: Provenance) -> list[Run]:
    """The current runs with their energies.

    ``prerun`` is that of the run's provenance or, since it decides no content, every current prerun execution.
    Each shared artifact counts whole; in the amortised view the teacher's artifacts count E/N. The evaluations of a run
    are those that consumed its model; one lacking a suite that another run has makes its E_eval unknown.
    """
    accepted = {key_of(r): r for r in rows if r["status"] in ("ok", "consumes_missing")}
    current = [r for r in accepted.values() if r["current"]]
    preruns = [key_of(r) for r in current if r["stage"] == "prerun"]
    by_model: dict[Key, list[Row]] = defaultdict(list)
    for row in current:
        if row["stage"] == "evaluation":
            for item in row["consumes"]:
                if item.startswith("student_training/"):
                    by_model[tuple(item.split("/"))].append(row)
    suites = {r["suite"] for rs in by_model.values() for r in rs}
    return [
        _run(row, accepted, provenance, preruns, by_model.get(key_of(row), []), suites)
        for row in current
        if row["stage"] == "student_training"
    ]


def _run(row, accepted, provenance: Provenance, preruns, evaluations, suites) -> Run:
    key = key_of(row)
    closure = provenance.closure(key)
    unknown: list[str] = []
    own_preruns = sorted(k for k in closure if k[0] == "prerun") or preruns
    stages = {stage: sorted(k for k in closure if k[0] == stage) for stage in ("preprocess", *TEACHER)}
    other = [k for k in closure if k[0] not in ("prerun", "preprocess", *TEACHER)]
    teachers = [*stages["teacher_logits"], *stages["teacher_generation"]]
    prerun = energy_sum(own_preruns, accepted, unknown) if own_preruns else 0.0
    preprocess = energy_sum(stages["preprocess"], accepted, unknown)
    teacher = energy_sum(teachers, accepted, unknown)
    shares = [(accepted[k]["total_j"] if k in accepted else None, provenance.reuse(k)) for k in teachers]
    share = None if teacher is None else math.fsum(j / n for j, n in shares)
    student = energy_sum([key, *other], accepted, unknown)
    lacking = sorted(suites - {r["suite"] for r in evaluations})
    evaluation = energy_sum([key_of(r) for r in evaluations], accepted, unknown)
    if lacking or not suites:
        what = ", ".join(str(s) for s in lacking) or "every suite"
        unknown.append(f"{'/'.join(key)}: not evaluated on {what}")
        evaluation = None
    reuse = min((n for _, n in shares), default=None)
    found = {
        "prerun": own_preruns,
        "preprocess": stages["preprocess"],
        "teacher": teachers,
        "student": [key, *other],
        "evaluation": [key_of(r) for r in evaluations],
    }
    return Run(
        row=row,
        prerun=prerun,
        preprocess=preprocess,
        teacher=teacher,
        teacher_share=share,
        student=student,
        evaluation=evaluation,
        reuse=reuse,
        evaluations=evaluations,
        parts={part: [accepted[k] for k in keys if k in accepted] for part, keys in found.items()},
        unknown=unknown,
    )
