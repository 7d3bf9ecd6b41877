"""The summary: a row per (teacher, dataset, pipeline, hyperparameters, student) over its seeds.

Sidecars' rows become runs (``runs``), runs become groups (``groups``), and each column of a group's row comes from one
of the small functions below.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..ledger.graph import TEACHER, Key
from ..ledger.ledger import provenance
from ..ledger.places import allocate, consumers
from ..ledger.rows import key_of
from . import inference, pareto, quality, trajectory
from .breakeven import JOULES_PER_KWH, BreakEven, n_star, t_star
from .campaign import Balance, artifact_of, balance, campaign, continued_j
from .groups import (
    Group,
    Teacher,
    baseline_of,
    build_groups,
    build_teachers,
    family,
    incomparable,
    is_paired,
    mark_kept,
    mark_spread,
    matching,
    reference_of,
)
from .intervals import Estimate, mean_interval, widened
from .labels import group_labels, pipeline_name
from .options import Options
from .runs import PARTS, Row, Run, build_runs, share_out

VIEWS = ("oneoff", "amortised", "marginal")
#: Views in which rows are compared on a front; a campaign is one of kept settings alone.
FRONTS = (*VIEWS, "campaign")


@dataclass
class Study:
    """All that a row may look at."""

    rows: Sequence[Row]
    options: Options
    groups: dict[str, Group]
    teachers: dict[str | None, Teacher]
    families: dict[tuple, list[Row]]
    places: list[dict[str, Any]]
    spent: dict[tuple, float | None]  # family → its campaign
    accepted: dict[Key, Row]
    consumers: dict[Key, list[Group]]  # teacher artifact → the groups kept that consumed it
    balances: dict[tuple, dict[str, Any]] = field(default_factory=dict)  # of artifacts, as they are first asked for

    def sharing(self, artifact: Sequence[Key]) -> list[Group]:
        """The kept groups that consumed one of these artifacts."""
        found = {group.name: group for key in artifact for group in self.consumers.get(key, ())}
        return list(found.values())


def kwh(joules: float | None) -> float | None:
    return None if joules is None else joules / JOULES_PER_KWH


def study(rows: Sequence[Row], options: Options | None = None) -> Study:
    """Runs, groups, kept settings and places of a ledger's rows."""
    options = options or Options()
    source = provenance(rows)
    runs = build_runs(rows, source)
    groups = build_groups(runs)
    teachers = build_teachers(rows)
    for group in groups.values():
        group.quality = quality.quality_of(
            group.scores,
            teachers.get(reference_of(teachers, group.first["teacher"]), Teacher()).scores,
            expected=options.benchmarks,
            drop_unusable=options.drop_unusable,
            confidence=options.confidence,
            draws=options.bootstrap,
            salt=group.name,
        )
    named = list(groups.values())
    for group, settled in zip(named, quality.pool([g.quality for g in named], options.confidence), strict=True):
        group.quality = settled
    mark_kept(groups, options)
    mark_spread(groups, options)
    kept = {run.key for group in groups.values() if group.kept for run in group.runs}
    share_out(runs, kept)
    places = allocate(rows, kept, source)
    spent = campaign(rows, places, consumers(rows, source))
    accepted = {key_of(r): r for r in rows if r["status"] in ("ok", "consumes_missing")}
    by_artifact: dict[Key, list[Group]] = defaultdict(list)
    for group in groups.values():
        for key in artifact_of(group) if group.kept else ():
            by_artifact[key].append(group)
    return Study(rows, options, groups, teachers, _families(rows), places, spent, accepted, by_artifact)


def summarise(rows: Sequence[Row], options: Options | None = None) -> list[dict[str, Any]]:
    """Summary rows of the current runs in ``rows`` (plain ledger dicts, see ``ledger.records``), best-known order:
    by teacher, data set, student and pipeline, the baseline first. Energies in kWh, unknown ones None with
    ``e_reason``.
    """
    return summary_of(study(rows, options))


def summary_of(found: Study) -> list[dict[str, Any]]:
    """Summary rows of a study."""
    summary = [_row(group, found) for group in found.groups.values()]
    finish(summary)
    return summary


def finish(summary: list[dict[str, Any]]) -> None:
    """Set labels and fronts over all rows, and sort them (in place; may be called again after adding rows)."""
    _mark_pareto(summary)
    labels = group_labels(summary)
    for row in summary:
        row["label"] = labels[row["group"]]
        for view in FRONTS:
            row[f"dominated_by_{view}"] = [labels[g] for g in row[f"dominated_by_{view}"]]
    summary.sort(key=lambda r: (str(r["q_reference"]), str(r["dataset"]), _size(r), not r["is_baseline"], r["label"]))


def _size(row: Mapping[str, Any]) -> tuple:
    return (row["student_params"] is None, row["student_params"] or 0, _natural(str(row["student"])))


def _natural(text: str) -> tuple:
    return tuple((int(p), "") if p.isdigit() else (0, p) for p in re.split(r"(\d+)", text) if p)


def _mark_pareto(summary: list[dict[str, Any]]) -> None:
    """Fronts by view, among the rows that share Q's reference, a data set and an execution class (law 3)."""
    rivals: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for row in summary:
        rivals[row["q_reference"], row["dataset"], row["execution"]].append(row)
    for members in rivals.values():
        for view in FRONTS:
            verdicts = pareto.front([(r["group"], r[f"e_{view}_kwh"], r["q"]) for r in members])
            for row in members:
                row[f"on_front_{view}"] = verdicts[row["group"]].on_front
                row[f"dominated_by_{view}"] = list(verdicts[row["group"]].dominated_by)


def _row(group: Group, found: Study) -> dict[str, Any]:
    base = baseline_of(group, found.groups, found.options)
    return {
        **_identity(group, base, found.options),
        "q_reference": reference_of(found.teachers, group.first["teacher"]),
        **_energies(group, found.options),
        **_measurement(group),
        **_quality(group),
        **_reuse(group, found),
        **_campaign(group, base, found),
        **_break_even(group, base, found),
        **_balance(group, base, found),
        **_serving(group, base, found),
        **_sweep(found.families[group.family]),
    }


def _identity(group: Group, base: Group | None, options: Options) -> dict[str, Any]:
    first = group.first
    return {
        "group": group.name,
        **{k: first[k] for k in ("teacher", "dataset", "pipeline", "hyperparameters", "student", "student_params")},
        "execution": group.execution,
        "is_baseline": base is group,
        "baseline_group": base.name if base else None,
        "is_kept": group.kept,
        "seeds": len(group.runs),
        "seed_list": [r.row["seed"] for r in group.runs],
        "confidence": options.confidence,
    }


def error_bound(rows: Sequence[Row], estimate_error: float) -> float:
    """Half-width in joules by which the meter may be off on all of ``rows`` together: their error bounds, and at least
    ``estimate_error`` of what a model estimated. Errors of one sensor or model are common, so they add up."""
    bounds = []
    for row in rows:
        total = row["total_j"] or 0.0
        floor = estimate_error * total if row["source"] == "estimated" else 0.0
        bounds.append(max(row["error_j"] or 0.0, floor))
    return math.fsum(bounds)


def _energies(group: Group, options: Options) -> dict[str, Any]:
    """Energies by part and by view: mean over seeds. ``_low``/``_high`` hold seeds and meter, ``_spread_low``/``_high``
    the seeds alone, which is what a comparison within one execution class needs: common errors cancel there."""
    runs, out = group.runs, {}
    for part in PARTS:
        estimate = mean_interval([r.whole[part] for r in runs], options.confidence)
        bound = _mean([error_bound(r.parts[part], options.estimate_error) for r in runs])
        out |= _interval(f"e_{part}", widened(estimate, bound, options.confidence))
        for what in ("idle", "wasted"):
            out[f"e_{part}_{what}_kwh"] = kwh(mean_interval([r.part(part, f"{what}_j") for r in runs]).value)
    bound = _mean([error_bound(r.members, options.estimate_error) for r in runs])
    whole = mean_interval([r.total("oneoff") for r in runs]).value
    for view in VIEWS:
        estimate = _view(group, view, options)
        part = bound * estimate.value / whole if whole and estimate.value is not None else None
        out |= _interval(f"e_{view}", widened(estimate, part, options.confidence))
        out[f"e_{view}_spread_low_kwh"], out[f"e_{view}_spread_high_kwh"] = kwh(estimate.low), kwh(estimate.high)
    out["e_reason"] = "; ".join(sorted({u for r in runs for u in r.unknown})) or None
    single = len(runs) == 1 and group.spread is None
    out["interval_reason"] = "one seed gives no interval" if single else None
    out["meter_error"] = bound / whole if whole else None  # share of the one-off energy, half-width
    return out


def _view(group: Group, view: str, options: Options) -> Estimate:
    """Mean over seeds of a view's total. Where the class's spread is pooled it is of the training alone, whose share of
    the total varies with the seed; the rest is shared or repeats."""
    totals_j = [r.total(view) for r in group.runs]
    plain = mean_interval(totals_j, options.confidence)
    if group.spread is None or plain.value is None:
        return plain
    training = mean_interval(group.students_j(), options.confidence, group.spread)
    if training.value is None:
        return plain
    half = training.high - training.value
    return Estimate(plain.value, plain.value - half, plain.value + half, plain.n, training.method)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _interval(name: str, estimate: Estimate) -> dict[str, Any]:
    return {
        f"{name}_kwh": kwh(estimate.value),
        f"{name}_low_kwh": kwh(estimate.low),
        f"{name}_high_kwh": kwh(estimate.high),
    }


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


def _quality(group: Group) -> dict[str, Any]:
    q = group.quality
    return {
        "q": q.value,
        "q_low": q.low,
        "q_high": q.high,
        "q_reason": q.reason,
        "q_items_low": q.items_low,
        "q_items_high": q.items_high,
        "q_dropped": list(q.dropped),
        "q_by_benchmark": json.dumps(q.by_benchmark, sort_keys=True),
    }


def _reuse(group: Group, found: Study) -> dict[str, Any]:
    """N, the runs that consumed the artifact, and kept, the distinct student × data set among the kept ones."""
    artifact = artifact_of(group)
    kept = found.sharing(artifact)
    return {
        "n_reuse": min((r.reuse for r in group.runs if r.reuse is not None), default=None),
        "n_kept": len({(g.first["student"], g.first["dataset"]) for g in kept}) if artifact else None,
        "n_kept_runs": sum(len(g.runs) for g in kept) if artifact else None,
    }


def _campaign(group: Group, base: Group | None, found: Study) -> dict[str, Any]:
    """All that was spent to arrive at this kept student: in total, by kept run, and beside the baseline's."""
    total = found.spent.get(group.family) if group.kept else None
    before = continued_j(group, found.places, found.accepted)
    total = None if total is None or before is None else total + before
    theirs = found.spent.get(base.family) if base is not None and group.kept else None
    each = None if total is None else total / len(group.runs)
    other = None if theirs is None or base is None else theirs / len(base.runs)
    comparable = base is not None and base is not group and incomparable(group, base) is None
    return {
        "e_campaign_kwh": kwh(each),
        "campaign_total_kwh": kwh(total),
        "campaign_excess": each / other - 1 if comparable and each is not None and other else None,
    }


def _teacher_sd(runs: Sequence[Run], options: Options) -> float:
    """Standard deviation of E_teacher by measurement that is not common to the class: an error bound of a measured
    artifact taken as a uniform half-width. What a model estimated is off by one factor everywhere, which cancels."""
    bounds = [m["error_j"] for m in runs[0].members if m["stage"] in TEACHER and m["source"] == "measured"]
    return math.fsum(b for b in bounds if b is not None) / math.sqrt(3)


def _break_even(group: Group, base: Group | None, found: Study) -> dict[str, Any]:
    """N* = E_teacher / (E_student_baseline − E_student_distill) (Lambert and Luccioni 2026), within one class."""
    runs, options = group.runs, found.options
    if base is group or runs[0].reuse is None:
        empty = BreakEven("unknown", reason="the baseline" if base is group else "it reuses no teacher artifact")
        result, equal, target, delta = empty, empty, None, (None, None, None)
    elif base is not None and (why := incomparable(group, base)):
        result = equal = BreakEven("unknown", reason=why)
        target, delta = None, quality.difference(group.quality, base.quality, options.confidence)
    else:
        teacher = mean_interval([r.teacher for r in runs]).value
        shared = {"confidence": options.confidence, "teacher_sd_j": _teacher_sd(runs, options)}
        baseline = base.students_j() if base else []
        paired = is_paired(group, base, options)
        spread = group.pairs if paired else group.spread
        result = n_star(teacher, baseline, group.students_j(), spread=spread, paired=paired, **shared)
        equal, target = _equal_quality(group, base, teacher, shared)
        delta = quality.difference(group.quality, base.quality, options.confidence) if base else (None, None, None)
    return {
        **_columns("n_star", result),
        "seeds_to_decide": result.seeds,
        **_n_star_flops(group, base),
        "utilisation": _utilisation(group),
        "saving_kwh": kwh(result.saving),
        "saving_low_kwh": kwh(result.saving_low),
        "saving_high_kwh": kwh(result.saving_high),
        "delta_q": delta[0],
        "delta_q_low": delta[1],
        "delta_q_high": delta[2],
        **_columns("n_star_equal_quality", equal),
        "equal_quality_loss": target,
    }


def _n_star_flops(group: Group, base: Group | None) -> dict[str, Any]:
    """N* in FLOPs: the same ratio of floating-point operations, which no hardware and no kernel changes.

    Where it differs from N*, the difference is implementation and hardware, not distillation. On the same tokens the
    distilled student computes what the baseline's does, so that by this measure distilling never pays.
    """
    name = "n_star_flops"
    if base is None or base is group or not artifact_of(group):
        return _columns(name, BreakEven("unknown", reason="nothing is compared"))
    teacher = [row["flops"] for row in group.runs[0].parts["teacher"]]
    arms = [[run.row["flops"] for run in g.runs] for g in (base, group)]
    if any(value is None for value in (*teacher, *arms[0], *arms[1])):
        return _columns(name, BreakEven("unknown", reason="the operations of a stage were not counted"))
    saving = _mean(arms[0]) - _mean(arms[1])
    if saving <= 1e-9 * _mean(arms[0]):
        return _columns(name, BreakEven("never", reason="training takes no fewer operations than the baseline's"))
    return _columns(name, BreakEven("finite", math.fsum(teacher) / saving, reason="counted, so without an interval"))


def _utilisation(group: Group) -> float | None:
    """Share of the peak that the trainings reached, mean over the seeds; None where one is not known."""
    found = [run.row["utilisation"] for run in group.runs]
    return None if None in found else _mean(found)


def _balance(group: Group, base: Group | None, found: Study) -> dict[str, Any]:
    """What the group's artifact has brought so far over all of its kept consumers (see ``campaign.balance``).

    It is the artifact's, so that it is judged once for all the groups of a class that share it.
    """
    artifact = artifact_of(group)
    if not artifact or base is group:
        return _balance_columns(None)
    key = (artifact, group.spread)
    if key not in found.balances:
        found.balances[key] = _balance_columns(_artifact_balance(artifact, group, found))
    return found.balances[key]


def _artifact_balance(artifact: Sequence[Key], group: Group, found: Study) -> Balance | None:
    """None where an energy is unknown, or a consumer has no baseline of its class."""
    arms, paired, selection = [], [], 0.0
    for other in found.sharing(artifact):
        against = baseline_of(other, found.groups, found.options)
        if against is None or incomparable(other, against):
            return None
        arms.append((against.students_j(), other.students_j()))
        paired.append(other.pairs if is_paired(other, against, found.options) else False)
        spent = [_selection(g, found) for g in (other, against)]
        if None in spent:
            return None
        selection += spent[0] - spent[1]
    teacher = [found.accepted[k]["total_j"] if k in found.accepted else None for k in artifact]
    if None in teacher or not arms or any(v is None for pair in arms for side in pair for v in side):
        return None
    return balance(
        math.fsum(teacher),
        selection,
        arms,
        teacher_sd_j=_teacher_sd(group.runs, found.options),
        spread=group.spread,
        paired=paired,
        confidence=found.options.confidence,
    )


def _balance_columns(result: Balance | None) -> dict[str, Any]:
    names = ("balance", "balance_low", "balance_high", "balance_cost", "balance_saved")
    if result is None:
        return dict.fromkeys((*(f"{n}_kwh" for n in names), "p_pays", "excess_so_far", "more_reuses"))
    values = (result.value, result.low, result.high, result.cost, result.saved)
    return {
        **{f"{name}_kwh": kwh(value) for name, value in zip(names, values, strict=True)},
        "p_pays": result.probability,
        "excess_so_far": -result.value / result.baseline if result.baseline else None,
        "more_reuses": result.more,
    }


def _selection(group: Group, found: Study) -> float | None:
    """Joules of the trainings of a group's family whose setting was not kept, or is listed no more."""
    kept = {run.key for run in group.runs}
    spent = [
        r["total_j"]
        for r in found.families[group.family]
        if r["stage"] == "student_training" and r["status"] != "orphan" and key_of(r) not in kept
    ]
    return None if None in spent else math.fsum(spent)


def _columns(name: str, result: BreakEven) -> dict[str, Any]:
    return {
        name: result.value,
        f"{name}_low": result.low,
        f"{name}_high": result.high,
        f"{name}_status": result.status,
        f"{name}_reason": result.reason,
    }


def _equal_quality(group: Group, base: Group | None, teacher, shared) -> tuple[BreakEven, float | None]:
    """N* from the energies at which both arms reach the lowest loss that all their runs reached."""
    if base is None:
        return BreakEven("unknown", reason="there is no baseline run of this student and data set"), None
    arms = [base.trajectories, group.trajectories]
    own_answers = any(c.startswith("teacher_generation/") for g in (group, base) for c in g.first["consumes"])
    if why := trajectory.comparable(arms, same_validation=not own_answers):
        return BreakEven("unknown", reason=why), None
    target = trajectory.common_target(arms)
    reached = [[trajectory.energy_to_reach(t, target) for t in arm] for arm in arms]
    return n_star(teacher, *reached, **shared), target


def _serving(group: Group, base: Group | None, found: Study) -> dict[str, Any]:
    """T* against the configured reference, in each view, in tokens and in answers."""
    options = found.options
    reference, other = options.inference_reference, None
    if reference == "teacher":
        name = reference_of(found.teachers, group.first["teacher"])
        cells, shown = found.teachers.get(name, Teacher()).inference, "the teacher"
    else:
        other = base if reference == "baseline" else _reference_student(group, found, reference)
        if other is None or other is group:
            reason = "this is the reference" if other is group else "no reference model"
            return _t_columns(BreakEven("unknown", reason=reason))
        cells, shown = other.inference, f"{pipeline_name(other.first['pipeline'])} {other.first['student']}"
        if other.first["student"] == group.first["student"] and not (group.made_after or other.made_after):
            reason = "the same architecture as its reference: no difference in serving"
            return _t_columns(BreakEven("unknown", reason=reason), shown)
    cell = inference.common_cell([group.inference, cells])
    if cell is None:
        reason = "J/token was not measured for both the student and its reference"
        return _t_columns(BreakEven("unknown", reason=reason), shown)
    theirs, ours = [c[cell] for c in cells], [c[cell] for c in group.inference]
    results = {view: _t_star(group, other, theirs, ours, view, options) for view in VIEWS}
    answers = inference.answers_cell(cell)
    each = BreakEven("unknown", reason="J/answer was not measured for both")
    if all(answers in c for c in (*cells, *group.inference)):
        pair = [c[answers] for c in cells], [c[answers] for c in group.inference]
        each = _t_star(group, other, *pair, "oneoff", options)
    return {
        **_t_columns(results["oneoff"], shown, cell, _mean(theirs), _mean(ours)),
        "t_star_amortised": results["amortised"].value,
        "t_star_amortised_status": results["amortised"].status,
        "t_star_marginal": results["marginal"].value,
        "t_star_marginal_status": results["marginal"].status,
        "t_star_answers": each.value,
        "t_star_answers_status": each.status,
        "t_star_answers_reason": each.reason,
    }


def _t_star(group: Group, other: Group | None, theirs, ours, view: str, options: Options) -> BreakEven:
    spent = [] if other is None else [r.training(view) for r in other.runs]
    if any(s is None for s in spent):
        return BreakEven("unknown", reason="the energy spent on the student or on its reference is unknown")
    mean = _mean(spent) if spent else 0.0
    extra = [None if (own := r.training(view)) is None else own - mean for r in group.runs]
    return t_star(extra, theirs, ours, reference_spent_j=spent, confidence=options.confidence)


def _reference_student(group: Group, found: Study, student: str) -> Group | None:
    wanted = (student, group.first["dataset"], found.options.baseline)
    candidates = [
        g for g in found.groups.values() if (g.first["student"], g.first["dataset"], g.first["pipeline"]) == wanted
    ]
    return matching(candidates, group.first)


def _t_columns(result: BreakEven, reference=None, cell=None, theirs=None, ours=None) -> dict[str, Any]:
    empty = {"t_star_amortised": None, "t_star_marginal": None, "t_star_answers": None}
    return {
        **_columns("t_star", result),
        "t_star_reference": reference,
        "t_star_batch_size": cell[1] if cell else None,
        "j_per_token_reference": theirs,
        "j_per_token_student": ours,
        **empty,
        **{f"{name}_status": result.status for name in empty},
        "t_star_answers_reason": result.reason,
    }


def _families(rows: Sequence[Row]) -> dict[tuple, list[Row]]:
    """Trainings and evaluations by teacher, data set, pipeline and student: all settings, all attempts."""
    families: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        if row["stage"] in ("student_training", "evaluation") and row["status"] not in ("duplicate", "elsewhere"):
            families[family(row)].append(row)
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
