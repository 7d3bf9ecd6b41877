"""Summary rows' runs: those of one teacher, data set, pipeline, setting and student, and what is compared with what."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..ledger.rows import key_of
from . import inference, quality, trajectory
from .intervals import Spread, pairs_spread, pooled
from .options import Options
from .runs import Row, Run


@dataclass
class Group:
    """The runs of one summary row and what their artifacts say."""

    name: str
    runs: list[Run]
    scores: list[dict[str, quality.Score]] = field(default_factory=list)
    inference: list[dict] = field(default_factory=list)
    trajectories: list[trajectory.Trajectory | None] = field(default_factory=list)
    quality: quality.Quality | None = None
    kept: bool = True  # of its sweep, the setting that is kept
    spread: Spread | None = None  # of its execution class
    pairs: Spread | None = None  # of its execution class: of differences between arms of one seed

    @property
    def first(self) -> Row:
        return self.runs[0].row

    @property
    def execution(self) -> str | None:
        """The execution class of its trainings; None if they differ."""
        found = {run.row["execution"] for run in self.runs}
        return found.pop() if len(found) == 1 else None

    @property
    def made_after(self) -> bool:
        """Whether it starts from a student that another pipeline trained, so that it may serve at another cost."""
        return bool(self.runs[0].continued)

    @property
    def family(self) -> tuple:
        return family(self.first)

    def students_j(self) -> list[float | None]:
        """Training energy by seed, joules."""
        return [run.student for run in self.runs]


@dataclass
class Teacher:
    """A teacher's own evaluation: Q's reference and T*'s."""

    scores: dict[str, quality.Score] = field(default_factory=dict)
    inference: list[dict] = field(default_factory=list)


def family(row: Row) -> tuple:
    """What the settings of one sweep share."""
    return tuple(row[k] for k in ("teacher", "dataset", "pipeline", "student"))


def _load(rows: Sequence[Row]) -> tuple[dict[str, quality.Score], dict]:
    scores: dict[str, quality.Score] = {}
    cells: dict = {}
    for row in rows:
        scores |= quality.read_scores(row["path"])
        cells |= inference.read_inference(row["path"])
    return scores, cells


def build_groups(runs: Sequence[Run]) -> dict[str, Group]:
    """Groups by name, their runs in the order of the seeds, with what their artifacts hold."""
    by_group: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        row = run.row
        name = row["group"] or "|".join(
            str(row[k]) for k in ("teacher", "dataset", "pipeline", "hyperparameters", "student")
        )
        by_group[name].append(run)
    groups = {}
    for name, members in by_group.items():
        members.sort(key=lambda r: (r.row["seed"] is None, r.row["seed"] or 0, r.row["version"]))
        group = Group(name, members)
        for run in members:
            scores, cells = _load(run.evaluations)
            group.scores.append(scores)
            group.inference.append(cells)
            group.trajectories.append(trajectory.read_trajectory(run.row["path"]))
        groups[name] = group
    return groups


def build_teachers(rows: Sequence[Row]) -> dict[str | None, Teacher]:
    """Teacher → its evaluation, from current rows of role teacher."""
    by_teacher: dict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        if row["stage"] == "evaluation" and row["current"] and row["role"] == "teacher" and row["status"] == "ok":
            by_teacher[row["teacher"]].append(row)
    result = {}
    for name, members in by_teacher.items():
        scores, cells = _load(members)
        result[name] = Teacher(scores, [cells] if cells else [])
    return result


def reference_of(teachers: Mapping[str | None, Teacher], teacher: str | None) -> str | None:
    """The model that a group's Q is relative to: its teacher, or of several teachers the one that was evaluated."""
    return teacher if teacher in teachers or len(teachers) != 1 else next(iter(teachers))


def mark_kept(groups: Mapping[str, Group], options: Options) -> None:
    """Of each sweep keep one setting: the lowest validation loss (mean over seeds of each run's best), else the best Q.

    The pipeline's own validation decides, as a practitioner would; Q, which is reported, decides only where a run has
    no trajectory. Ties go to the setting that is listed first.
    """
    families: dict[tuple, list[Group]] = defaultdict(list)
    for group in groups.values():
        families[group.family].append(group)
    for members in families.values():
        losses = [_loss(g) for g in members]
        if None not in losses:
            best = members[losses.index(min(losses))]
        else:
            best = max(members, key=lambda g: -math.inf if g.quality is None else g.quality.value or -math.inf)
        for group in members:
            group.kept = group is best


def _loss(group: Group) -> float | None:
    if not group.trajectories or any(t is None for t in group.trajectories):
        return None
    return math.fsum(t.best for t in group.trajectories) / len(group.trajectories)


def mark_spread(groups: Mapping[str, Group], options: Options) -> None:
    """Give each group its class's pooled relative spread of training energy, where the class can be pooled, and where
    the study is paired that of its pairs."""
    classes: dict[str | None, list[Group]] = defaultdict(list)
    for group in groups.values():
        classes[group.execution].append(group)
    for execution, members in classes.items():
        energies = [g.students_j() for g in members]
        known = [values for values in energies if all(v is not None for v in values)]
        spread = pooled(known) if execution is not None else None
        pairs = None
        if options.paired and execution is not None:
            matched = [(g, baseline_of(g, groups, options)) for g in members]
            pairs = pairs_spread([(b.students_j(), g.students_j()) for g, b in matched if is_paired(g, b, options)])
            if spread is not None:  # all groups saw the same seeds' noise: the seeds count once, not once a group
                seeds = max(len(g.runs) for g in members)
                spread = Spread(spread.relative, float(max(seeds - 1, 1)))
        for group in members:
            group.spread, group.pairs = spread, pairs


def is_paired(group: Group, base: Group | None, options: Options) -> bool:
    """Whether a group is compared with its baseline seed by seed: so configured, and both of the same seeds."""
    if not options.paired or base is None or base is group:
        return False
    seeds, theirs = ([run.row["seed"] for run in g.runs] for g in (group, base))
    known = None not in (*seeds, *group.students_j(), *base.students_j())
    return known and seeds == theirs and len(set(seeds)) == len(seeds)


def baseline_of(group: Group, groups: Mapping[str, Group], options: Options) -> Group | None:
    """The group that N* compares with: the same student and data set under the baseline pipeline."""
    first = group.first
    if first["baseline_group"] in groups:
        return groups[first["baseline_group"]]
    if first["pipeline"] == options.baseline:
        return group
    found = [
        g
        for g in groups.values()
        if all(g.first[k] == first[k] for k in ("student", "dataset")) and g.first["pipeline"] == options.baseline
    ]
    # Of several teachers' baselines its own; one that learns from none serves every teacher.
    own = [g for g in found if g.first["teacher"] == first["teacher"]]
    return matching(own or [g for g in found if g.runs[0].reuse is None], first)


def matching(found: list[Group], first: Row) -> Group | None:
    """Of several settings: the one that agrees on the shared hyperparameters, then the kept one, then the best Q."""
    if len(found) > 1:
        ours = json.loads(first["hyperparameters"] or "{}")
        agreeing = []
        for group in found:
            theirs = json.loads(group.first["hyperparameters"] or "{}")
            if all(theirs[k] == ours[k] for k in theirs.keys() & ours.keys()):
                agreeing.append(group)
        found = agreeing or found
        found.sort(key=lambda g: (not g.kept, -(g.quality.value or 0.0) if g.quality else 0.0, g.name))
    return found[0] if found else None


def incomparable(one: Group, other: Group) -> str | None:
    """Why two groups' energies must not be compared (law 3), or None.

    Their trainings, and the teacher artifacts that they consumed, must be of one execution class: on other hardware or
    other major versions a difference of joules is not one of methods.
    """
    classes: dict[str | None, str] = {}
    methods: dict[str | None, str] = {}
    for group in (one, other):
        for run in group.runs:
            for row in (r for r in run.parts["student"] if not run.continued or r is not run.row):
                methods.setdefault(row["method"], "/".join(key_of(row)))
            for row in (*run.parts["student"], *run.parts["teacher"]):
                classes.setdefault(row["execution"], "/".join(key_of(row)))
    for found in (classes, methods):
        if len(found) > 1:
            shown = "; ".join(f"{name or 'unknown'} ({where})" for name, where in list(found.items())[:3])
            return f"executions of different classes: {shown}"
    return None
