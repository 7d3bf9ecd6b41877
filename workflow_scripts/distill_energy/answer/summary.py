"""The summary: a row per (teacher, dataset, pipeline, hyperparameters, student) over its seeds."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..ledger.graph import TEACHER
from ..ledger.ledger import provenance
from ..ledger.rows import key_of
from . import inference, pareto, quality, trajectory
from .breakeven import JOULES_PER_KWH, BreakEven, n_star, t_star
from .intervals import Estimate, mean_interval
from .labels import group_labels, pipeline_name
from .options import Options
from .runs import Row, Run, build_runs

VIEWS = ("oneoff", "amortised", "marginal")
STAGE_PARTS = ("prerun", "preprocess", "teacher", "student", "evaluation")


@dataclass
class Group:
    """The runs of one summary row and what their artifacts say."""

    name: str
    runs: list[Run]
    scores: list[dict[str, quality.Score]] = field(default_factory=list)
    inference: list[dict] = field(default_factory=list)
    trajectories: list[trajectory.Trajectory | None] = field(default_factory=list)
    quality: quality.Quality | None = None

    @property
    def first(self) -> Row:
        return self.runs[0].row


def kwh(joules: float | None) -> float | None:
    return None if joules is None else joules / JOULES_PER_KWH


def _load(run_rows: Sequence[Row]) -> tuple[dict[str, quality.Score], dict]:
    scores: dict[str, quality.Score] = {}
    cells: dict = {}
    for row in run_rows:
        scores |= quality.read_scores(row["path"])
        cells |= inference.read_inference(row["path"])
    return scores, cells


def _groups(runs: Sequence[Run]) -> dict[str, Group]:
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


def _teachers(rows: Sequence[Row]) -> dict[str | None, tuple[dict[str, quality.Score], list[dict], float | None]]:
    """teacher → (scores, [J/token cells], joules of its own evaluation); from current rows of role teacher."""
    by_teacher: dict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        if row["stage"] == "evaluation" and row["current"] and row["role"] == "teacher" and row["status"] == "ok":
            by_teacher[row["teacher"]].append(row)
    result = {}
    for name, members in by_teacher.items():
        scores, cells = _load(members)
        known = [m["total_j"] for m in members]
        result[name] = (scores, [cells] if cells else [], None if None in known else math.fsum(known))
    return result


def summarise(rows: Sequence[Row], options: Options | None = None) -> list[dict[str, Any]]:
    """Summary rows of the current runs in ``rows`` (plain ledger dicts, see ``ledger.records``), best-known order:
    by teacher, data set, student and pipeline, the baseline first. Energies in kWh, unknown ones None with
    ``e_reason``.
    """
    options = options or Options()
    source = provenance(rows)
    groups = _groups(build_runs(rows, source))
    teachers = _teachers(rows)
    for group in groups.values():
        scores = teachers.get(group.first["teacher"], ({}, [], None))[0]
        group.quality = quality.quality_of(
            group.scores,
            scores,
            expected=options.benchmarks,
            drop_unusable=options.drop_unusable,
            confidence=options.confidence,
            draws=options.bootstrap,
            salt=group.name,
        )
    families = _families(rows)
    summary = [_row(group, groups, teachers, families, options) for group in groups.values()]
    finish(summary)
    return summary


def finish(summary: list[dict[str, Any]]) -> None:
    """Set labels and fronts over all rows, and sort them (in place; may be called again after adding rows)."""
    _mark_pareto(summary)
    labels = group_labels(summary)
    for row in summary:
        row["label"] = labels[row["group"]]
        for view in VIEWS:
            row[f"dominated_by_{view}"] = [labels[g] for g in row[f"dominated_by_{view}"]]
    summary.sort(key=lambda r: (str(r["teacher"]), str(r["dataset"]), _size(r), not r["is_baseline"], r["label"]))


def _size(row: Mapping[str, Any]) -> tuple:
    return (row["student_params"] is None, row["student_params"] or 0, _natural(str(row["student"])))


def _natural(text: str) -> tuple:
    return tuple((int(p), "") if p.isdigit() else (0, p) for p in re.split(r"(\d+)", text) if p)


def _mark_pareto(summary: list[dict[str, Any]]) -> None:
    """Fronts by view, among the rows that share a teacher and a data set (Q is relative to the teacher)."""
    families: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for row in summary:
        families[row["teacher"], row["dataset"]].append(row)
    for members in families.values():
        for view in VIEWS:
            verdicts = pareto.front([(r["group"], r[f"e_{view}_kwh"], r["q"]) for r in members])
            for row in members:
                row[f"on_front_{view}"] = verdicts[row["group"]].on_front
                row[f"dominated_by_{view}"] = list(verdicts[row["group"]].dominated_by)


def _put(row: dict[str, Any], name: str, estimate: Estimate) -> None:
    row[f"{name}_kwh"] = kwh(estimate.value)
    row[f"{name}_low_kwh"] = kwh(estimate.low)
    row[f"{name}_high_kwh"] = kwh(estimate.high)


def _row(group: Group, groups, teachers, families, options: Options) -> dict[str, Any]:
    first, runs, q = group.first, group.runs, group.quality
    base = _baseline(group, groups, options)
    row: dict[str, Any] = {
        "group": group.name,
        **{k: first[k] for k in ("teacher", "dataset", "pipeline", "hyperparameters", "student", "student_params")},
        "is_baseline": base is group,
        "baseline_group": base.name if base else None,
        "seeds": len(runs),
        "seed_list": [r.row["seed"] for r in runs],
        "confidence": options.confidence,
    }
    for part in STAGE_PARTS:
        _put(row, f"e_{part}", mean_interval([getattr(r, part) for r in runs], options.confidence))
        for what in ("idle", "wasted"):
            row[f"e_{part}_{what}_kwh"] = kwh(mean_interval([r.part(part, f"{what}_j") for r in runs]).value)
    for view in VIEWS:
        _put(row, f"e_{view}", mean_interval([r.total(view) for r in runs], options.confidence))
    row["e_reason"] = "; ".join(sorted({u for r in runs for u in r.unknown})) or None
    row["interval_reason"] = "one seed gives no interval" if len(runs) == 1 else None
    row |= _measurement(group)
    row |= {
        "q": q.value,
        "q_low": q.low,
        "q_high": q.high,
        "q_reason": q.reason,
        "q_items_low": q.items_low,
        "q_items_high": q.items_high,
        "q_dropped": list(q.dropped),
        "q_by_benchmark": json.dumps(q.by_benchmark, sort_keys=True),
        "n_reuse": min((r.reuse for r in runs if r.reuse is not None), default=None),
    }
    row |= _break_even(group, base, options)
    row |= _tokens_to_serve(group, base, groups, teachers, options)
    row |= _sweep(families[_family(group.first)])
    return row


def _measurement(group: Group) -> dict[str, Any]:
    """Idle, net, wasted and CO2e of the one-off total (mean over seeds), and how it was measured."""
    idle, net, wasted, co2, sources, flags, coverage = [], [], [], [], set(), set(), []
    for run in group.runs:
        idle.append(_total(run, "idle_j"))
        net.append(_total(run, "total_net_j"))
        wasted.append(_total(run, "wasted_j"))
        co2.append(_total(run, "co2e_g"))
        sources |= {m["source"] for m in run.members}
        flags |= {f for m in run.members for f in (m["flags"] or [])}
        coverage += [m["coverage"] for m in run.members if m["coverage"] is not None]
    gross = mean_interval([r.total("oneoff") for r in group.runs]).value
    idle_mean = mean_interval(idle).value
    return {
        "e_oneoff_idle_kwh": kwh(idle_mean),
        "e_oneoff_net_kwh": kwh(mean_interval(net).value),
        "e_oneoff_wasted_kwh": kwh(mean_interval(wasted).value),
        "idle_share": idle_mean / gross if idle_mean is not None and gross else None,
        "co2e_oneoff_g": mean_interval(co2).value,
        "source": sources.pop() if len(sources) == 1 else "mixed",
        "flags": sorted(flags),
        "coverage_min": min(coverage, default=None),
    }


def _total(run: Run, column: str) -> float | None:
    values = [m[column] for m in run.members]
    return None if any(v is None for v in values) or run.unknown else math.fsum(values)


def _baseline(group: Group, groups: Mapping[str, Group], options: Options) -> Group | None:
    first = group.first
    if first["baseline_group"] in groups:
        return groups[first["baseline_group"]]
    if first["pipeline"] == options.baseline:
        return group
    found = [
        g
        for g in groups.values()
        if all(g.first[k] == first[k] for k in ("student", "dataset", "teacher"))
        and g.first["pipeline"] == options.baseline
    ]
    return _matching(found, first)


def _matching(found: list[Group], first: Row) -> Group | None:
    """Of several settings of the baseline: the one that agrees on the shared hyperparameters, then the best Q."""
    if len(found) > 1:
        ours = json.loads(first["hyperparameters"] or "{}")
        agreeing = []
        for group in found:
            theirs = json.loads(group.first["hyperparameters"] or "{}")
            if all(theirs[k] == ours[k] for k in theirs.keys() & ours.keys()):
                agreeing.append(group)
        found = agreeing or found
        found.sort(key=lambda g: (-(g.quality.value or 0.0) if g.quality else 0.0, g.name))
    return found[0] if found else None


def _teacher_sd(runs: Sequence[Run]) -> float:
    """Standard deviation of E_teacher by measurement: the error bound taken as a uniform half-width."""
    bounds = [m["error_j"] for m in runs[0].members if m["stage"] in TEACHER]
    return math.fsum(b for b in bounds if b is not None) / math.sqrt(3)


def _break_even(group: Group, base: Group | None, options: Options) -> dict[str, Any]:
    runs = group.runs
    if base is group or runs[0].reuse is None:
        empty = BreakEven("unknown", reason="the baseline" if base is group else "no teacher artifact is consumed")
        result, equal, target, delta = empty, empty, None, (None, None, None)
    else:
        teacher = mean_interval([r.teacher for r in runs]).value
        shared = {"confidence": options.confidence, "teacher_sd_j": _teacher_sd(runs)}
        baseline = [r.student for r in base.runs] if base else []
        reuse = min(r.reuse for r in runs if r.reuse is not None)
        result = n_star(teacher, baseline, [r.student for r in runs], reuse=reuse, **shared)
        equal, target = _equal_quality(group, base, teacher, reuse, shared)
        delta = quality.difference(group.quality, base.quality, options.confidence) if base else (None, None, None)
    return {
        **_columns("n_star", result),
        "saving_kwh": kwh(result.saving),
        "saving_low_kwh": kwh(result.saving_low),
        "saving_high_kwh": kwh(result.saving_high),
        "p_pays": result.probability,
        "excess_so_far": _excess(group, base) if base is not group else None,
        "delta_q": delta[0],
        "delta_q_low": delta[1],
        "delta_q_high": delta[2],
        **_columns("n_star_equal_quality", equal),
        "equal_quality_loss": target,
    }


def _excess(group: Group, base: Group | None) -> float | None:
    """(E_teacher/N + E_student) / E_student_baseline − 1 at the real N: the same terms as N*."""
    if base is None:
        return None
    ours = mean_interval(
        [None if r.teacher_share is None or r.student is None else r.teacher_share + r.student for r in group.runs]
    ).value
    theirs = mean_interval([r.student for r in base.runs]).value
    return None if ours is None or not theirs else ours / theirs - 1


def _columns(name: str, result: BreakEven) -> dict[str, Any]:
    return {
        name: result.value,
        f"{name}_low": result.low,
        f"{name}_high": result.high,
        f"{name}_status": result.status,
        f"{name}_reason": result.reason,
    }


def _equal_quality(group: Group, base: Group | None, teacher, reuse, shared) -> tuple[BreakEven, float | None]:
    """N* from the energies at which both arms reach the lowest loss that all their runs reached."""
    if base is None:
        return BreakEven("unknown", reason="there is no baseline run of this student and data set"), None
    arms = [base.trajectories, group.trajectories]
    own_answers = any(c.startswith("teacher_generation/") for g in (group, base) for c in g.first["consumes"])
    if why := trajectory.comparable(arms, same_validation=not own_answers):
        return BreakEven("unknown", reason=why), None
    target = trajectory.common_target(arms)
    reached = [[trajectory.energy_to_reach(t, target) for t in arm] for arm in arms]
    return n_star(teacher, *reached, reuse=reuse, **shared), target


def _tokens_to_serve(group: Group, base: Group | None, groups, teachers, options: Options) -> dict[str, Any]:
    """T* against the configured reference, from J/token of decoding at the largest common batch size."""
    reference = options.inference_reference
    if reference == "teacher":
        name = group.first["teacher"] or next(iter(teachers), None)
        cells, spent, shown = teachers.get(name, ({}, [], None))[1], 0.0, "the teacher"
    else:
        other = base if reference == "baseline" else _reference_student(group, groups, reference, options)
        if other is None or other is group:
            result = BreakEven("unknown", reason="this is the reference" if other is group else "no reference model")
            return _t_columns(result, None, None, None, None)
        spent = mean_interval([r.training for r in other.runs]).value
        cells, shown = other.inference, f"{pipeline_name(other.first['pipeline'])} {other.first['student']}"
    cell = inference.common_cell([group.inference, cells])
    if cell is None:
        reason = "J/token was not measured for both the student and its reference"
        return _t_columns(BreakEven("unknown", reason=reason), shown, None, None, None)
    extra = [None if r.training is None or spent is None else r.training - spent for r in group.runs]
    theirs, ours = [c[cell] for c in cells], [c[cell] for c in group.inference]
    result = t_star(extra, theirs, ours, confidence=options.confidence)
    return _t_columns(result, shown, cell, math.fsum(theirs) / len(theirs), math.fsum(ours) / len(ours))


def _reference_student(group: Group, groups, student: str, options: Options) -> Group | None:
    found = [
        g
        for g in groups.values()
        if (g.first["student"], g.first["dataset"], g.first["pipeline"])
        == (student, group.first["dataset"], options.baseline)
    ]
    return _matching(found, group.first)


def _t_columns(result: BreakEven, reference, cell, theirs, ours) -> dict[str, Any]:
    return {
        **_columns("t_star", result),
        "t_star_reference": reference,
        "t_star_batch_size": cell[1] if cell else None,
        "j_per_token_reference": theirs,
        "j_per_token_student": ours,
    }


def _family(row: Row) -> tuple:
    return tuple(row[k] for k in ("teacher", "dataset", "pipeline", "student"))


def _families(rows: Sequence[Row]) -> dict[tuple, list[Row]]:
    """Trainings and evaluations by teacher, data set, pipeline and student: all settings, all attempts."""
    families: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        if row["stage"] in ("student_training", "evaluation") and row["status"] != "duplicate":
            families[_family(row)].append(row)
    return families


def _sweep(members: Sequence[Row]) -> dict[str, Any]:
    """Energy of every training and evaluation of one pipeline and student, all settings, wasted attempts too."""
    energies = [r["total_j"] for r in members]
    wasted = [r["wasted_j"] for r in members]
    trained = {key_of(r) for r in members if r["stage"] == "student_training" and r["status"] != "orphan"}
    return {
        "sweep_runs": len(trained),
        "e_sweep_kwh": None if any(e is None for e in energies) else kwh(math.fsum(energies)),
        "e_sweep_wasted_kwh": None if any(w is None for w in wasted) else kwh(math.fsum(wasted)),
    }
