"""Stage logs of the public reference harness (see ``harness``) as sidecars and killed attempts.

The power log is integrated again (trapezoids, the first and last reading held to the stage's ends) and the harness's
own figure kept as the cross-check. What the harness did not record stays unknown; nothing is filled in.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..config.names import check_part
from ..energy.account import DISAGREE, DISPUTED, GAP
from ..errors import UserError
from ..ledger.build import make_attempt, make_sidecar, write_attempt, write_sidecar
from ..ledger.graph import Key
from ..ledger.rows import artifact_folders, canonical
from ..store.atomic import write_parquet
from ..store.sidecar import Co2e, Component, Gpu, Hardware, PerToken, Quality, Software, Tokens, read, total
from .harness import EDGE_S, Left, StageLog, find
from .power_log import MOST_W, PowerLog, bound, integrate

#: What the harness calls its stages, most particular first.
STAGE_WORDS = (
    ("prerun", ("burn_in", "prerun", "idle")),
    ("preprocess", ("preprocess",)),
    ("teacher_logits", ("logit", "teacher_forward")),
    ("teacher_generation", ("generation", "synthetic_gen")),
    ("evaluation", ("eval", "benchmark", "gsm8k", "mmlu", "ifeval", "alpaca", "mt_bench", "olmes")),
    ("student_training", ("train", "kd", "sft")),
    ("teacher_generation", ("synthetic",)),
)
EXPERIMENT = re.compile(r"(?P<pipeline>kd|sft|synthetic)[_-](?P<teacher>[0-9.]+b)[_-]to[_-](?P<student>[0-9.]+b)", re.I)
#: The teacher's stage that a pipeline trains on.
NEEDED = {"kd": "teacher_logits", "synthetic": "teacher_generation"}
#: By what, in the configurations, a teacher's artifact and the trainings that read it agree.
_KEYS = {"teacher_logits": ("teacher_logprobs", "temperature", "top_k"), "teacher_generation": ("synthetic",)}
#: Units in which an energy is mistaken for joules, by the factor between the two.
MISTAKEN = ((3.6e6, "kWh, not J"), (1e3, "kJ, not J"), (1e-3, "mJ, not J"))
ORDER = ("prerun", "preprocess", "teacher_logits", "teacher_generation", "student_training", "evaluation")
NO_IDLE = "the harness measures no idle power for a stage"


@dataclass
class Imported:
    """Folders of the artifacts written, killed attempts with their joules, and what was left out."""

    folders: list[Path] = field(default_factory=list)
    killed: list[tuple[Path, float | None]] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)


@dataclass
class _Plan:
    log: StageLog
    kind: str
    labels: dict[str, Any]
    links: dict[str, Any]  # what its configuration says that it reads and writes


@dataclass(frozen=True)
class _Known:
    """An artifact that a stage may have read."""

    key: Key
    labels: Mapping[str, Any]
    links: Mapping[str, Any]
    ended: str  # UTC


def stage_kind(log: StageLog) -> str | None:
    """Our stage for a stage of the harness, by its names; None if they tell nothing."""
    for name in map(str.lower, log.names):
        for stage, words in STAGE_WORDS:
            if any(word in name for word in words):
                return stage
    return None


def components_of(log: StageLog) -> tuple[list[Component], list[str], list[str]]:
    """(components, flags, notes): GPU by integral (the harness's figure as cross-check), CPU and DRAM as recorded.

    UserError for an energy that is plainly in another unit, where nothing else tells it.
    """
    gpus, flags, notes = _gpus(log)
    return [*gpus, _cpu(log.data), _ram(log.data)], flags, notes


def _gpus(log: StageLog) -> tuple[list[Component], list[str], list[str]]:
    power, said = log.log, _positive(log.data.get("gpu_energy_joules"))
    usable = power.inside(log.start - EDGE_S, log.end + EDGE_S) if power is not None else None
    if usable is not None and any(log.start <= t <= log.end for t, _ in usable.readings):
        return _integrated(log, usable, said)
    flags, notes = [], []
    if power is not None and power.readings:
        flags.append("foreign_log")
        span = f"{_utc(power.start)} to {_utc(power.end)}"
        notes.append(f"{power.path.name} holds {span}, nothing of the stage ({_utc(log.start)} to {_utc(log.end)})")
    if said is None:
        reason = "neither a power log nor a GPU energy"
        return [Component(component="gpu", source="unavailable", reason=reason)], flags, notes
    check, method = _own_check(log)
    if check is not None and (unit := _mistaken(said, check)):
        raise UserError(f"{log.path}: gpu_energy_joules {said:g} is {unit}: power × time is {check:.0f} J")
    error = None
    if check is not None:
        error = abs(said - check)
        flags += _disagreement(said, check, "gpu_energy_joules", f"its own {method}", notes)
    part = Component(
        component="gpu",
        source="measured",
        method="reference_harness",
        gross_j=said,
        crosscheck_method=method,
        crosscheck_j=check,
        error_j=error,
        idle_reason=NO_IDLE,
    )
    return [part], flags, notes


def _own_check(log: StageLog) -> tuple[float | None, str | None]:
    """A second figure of the harness's own for the GPU's joules: its samples' mean, or its average power, × time."""
    samples = log.data.get("gpu_power_samples")
    if isinstance(samples, list) and len(samples) > 1 and all(isinstance(w, int | float) for w in samples):
        return statistics.fmean(samples) * (log.end - log.start), "mean_of_samples"
    if mean := _positive(log.data.get("gpu_avg_power_watts")):
        return mean * (log.end - log.start), "average_power"
    return None, None


def _integrated(log: StageLog, power: PowerLog, said: float | None):
    """The GPUs by their power log, compared with what the harness says of the same stage."""
    asked = _interval(log)
    parts, errors = [], []
    for index in range(len(power.gpus)):
        readings = [(t, w[index]) for t, w in power.readings]
        parts.append(integrate(readings, log.start, log.end))
        cap = max(max(w for _, w in readings), min(_limit(log) or 0.0, MOST_W))
        errors.append(bound(readings, log.start, log.end, asked or _median_step(power) or 0.5, cap))
    whole, flags, notes = math.fsum(parts), list(power.flags), list(power.notes)
    check = said
    if said is not None and (unit := _mistaken(said, whole)):
        flags.append("disputed")
        notes.append(f"gpu_energy_joules {said:g} is {unit}: the power log's integral is {whole:.0f} J")
        check = None
    elif said is not None:
        flags += _disagreement(whole, said, "the power log's integral", "gpu_energy_joules", notes)
    elif not log.killed:
        notes.append("gpu_energy_joules is missing: nothing to compare the power log with")
    mean = _positive(log.data.get("gpu_avg_power_watts"))
    if mean is not None and not log.killed and not _mistaken(mean * (log.end - log.start), whole):
        flags += _disagreement(whole, mean * (log.end - log.start), "the power log's integral", "average power", notes)
    # The disagreement, and what the clock lost, are the whole's: each GPU bears its share of them.
    more = (abs(whole - check) if check is not None else 0.0) + power.lost_s * whole / (log.end - log.start)
    components = [
        Component(
            component="gpu",
            device=name.removesuffix("_power_w"),
            source="measured",
            method="nvml_power_integral",
            gross_j=joules,
            error_j=max(error, more * (joules / whole if whole else 0.0)),
            crosscheck_method="reference_harness" if check is not None and len(parts) == 1 else None,
            crosscheck_j=check if len(parts) == 1 else None,
            idle_reason=NO_IDLE,
        )
        for name, joules, error in zip(power.gpus, parts, errors, strict=True)
    ]
    return components, list(dict.fromkeys(flags)), notes


def _mistaken(said: float, joules: float) -> str | None:
    """The unit that ``said`` is in where it is ``joules`` by a factor that units differ by."""
    for factor, unit in MISTAKEN:
        if joules and math.isclose(said * factor, joules, rel_tol=DISPUTED):
            return unit
    return None


def _disagreement(one: float, other: float, name: str, against: str, notes: list[str]) -> list[str]:
    """Flags of two figures of one energy: above 2 % ``crosscheck``, above 5 % ``disputed``."""
    apart = abs(one - other) / max(one, other) if max(one, other) else 0.0
    if apart <= DISAGREE:
        return []
    notes.append(f"{name} is {one:.0f} J, {against} {other:.0f} J: {100 * apart:.1f} % apart")
    return ["disputed"] if apart > DISPUTED else ["crosscheck"]


def _sums(log: StageLog) -> tuple[list[str], list[str]]:
    """(flags, notes) of a record's figures that contradict each other: its total in J and kWh, its duration."""
    data, flags, notes = log.data, [], []
    total_j, kwh = _positive(data.get("total_energy_joules")), _positive(data.get("total_energy_kwh"))
    if total_j is not None and kwh is not None:
        flags += _disagreement(kwh * 3.6e6, total_j, "total_energy_kwh", "total_energy_joules", notes)
    said = _positive(data.get("duration_seconds"))
    if said is not None and abs(said - (log.end - log.start)) > max(1.0, DISAGREE * said):
        flags.append("clock_step")
        notes.append(f"duration_seconds {said:.0f}, but end_time − start_time is {log.end - log.start:.0f} s")
    return flags, notes


def _positive(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else None


def _interval(log: StageLog) -> float | None:
    asked = _positive(log.data.get("nvml_poll_interval_ms")) or _positive(log.setting("energy.nvml_poll_interval_ms"))
    return asked / 1000 if asked else None


def _median_step(power: PowerLog) -> float | None:
    steps = [b[0] - a[0] for a, b in itertools.pairwise(power.readings) if b[0] > a[0]]
    return statistics.median(steps) if steps else None


def _limit(log: StageLog) -> float | None:
    return max((g["power_limit_watts"] for g in log.environment.get("gpus") or ()), default=None)


def _cpu(data: Mapping[str, Any]) -> Component:
    """RAPL (a start and a stop reading, so wraps are invisible) or CodeCarbon's estimate. The harness does not say
    which: a value equal to CodeCarbon's is CodeCarbon's."""
    joules = _positive(data.get("cpu_energy_joules"))
    carbon = _positive(data.get("codecarbon_cpu_energy_kwh"))
    carbon = carbon * 3.6e6 if carbon else None
    if joules is not None and carbon is not None and math.isclose(joules, carbon, rel_tol=1e-6):
        return Component(component="cpu", source="estimated", method="codecarbon_machine", gross_j=joules)
    if joules is not None:
        return Component(
            component="cpu",
            source="measured",
            method="rapl_start_stop",
            gross_j=joules,
            crosscheck_method="codecarbon_machine" if carbon else None,
            crosscheck_j=carbon,
        )
    if carbon is not None:
        return Component(component="cpu", source="estimated", method="codecarbon_machine", gross_j=carbon)
    reason = "the harness recorded no CPU energy: the total is the GPU's alone"
    return Component(component="cpu", source="unavailable", reason=reason, in_total=False)


def _ram(data: Mapping[str, Any]) -> Component:
    carbon = _positive(data.get("codecarbon_ram_energy_kwh"))
    if carbon is None:
        return Component(
            component="dram", source="unavailable", reason="the harness does not measure DRAM", in_total=False
        )
    return Component(
        component="dram", source="estimated", method="codecarbon_flat", gross_j=carbon * 3.6e6, in_total=False
    )


def quality_of(log: StageLog, flags: Sequence[str], notes: Sequence[str]) -> Quality:
    """Interval reached, gaps and coverage of the power log, and what was named about the record."""
    asked, power = _interval(log), log.log
    flags, notes = list(flags), [*log.notes, *notes]
    inside = power.inside(log.start, log.end).readings if power is not None else ()
    if not inside:
        samples = log.data.get("gpu_power_samples")
        flags.append("no_trace")
        notes.append("no power log: the harness's own integral is used")
        covered = None
        if isinstance(samples, list) and samples and asked:
            covered = min(1.0, len(samples) * asked / (log.end - log.start))
        return Quality(interval_asked_s=asked, coverage=covered, flags=list(dict.fromkeys(flags)), notes=notes)
    times = [log.start, *(t for t, _ in inside), log.end]
    steps = [b - a for a, b in itertools.pairwise(times)]
    inner = sorted(steps[1:-1]) or [asked or 0.5]
    reached = inner[len(inner) // 2]
    limit = GAP * (asked or reached)
    gaps = [s for s in steps if s > limit]
    if gaps:
        flags.append("gap")
    if _positive(log.data.get("cpu_energy_joules")) is None:
        flags.append("gpu_only")
    return Quality(
        interval_asked_s=asked,
        interval_reached_s=reached,
        largest_gap_s=max(steps),
        gaps=len(gaps),
        coverage=max(0.0, min(1.0, 1 - math.fsum(gaps) / (log.end - log.start))),
        flags=list(dict.fromkeys(flags)),
        notes=notes,
    )


def _tokens() -> tuple[Tokens, PerToken]:
    """The harness counts examples as tokens in places, so its count is named in ``results`` and never divided by."""
    return Tokens(), PerToken(
        reason="the reference harness counts examples as tokens in places: its count is in results"
    )


def import_runs(
    run_dirs: Sequence[str | Path],
    out: str | Path,
    *,
    stage: str | None = None,
    pipeline: str | None = None,
    teacher: str | None = None,
    student: str | None = None,
    dataset: str | None = None,
    seed: int | None = None,
    missing_teacher: bool = False,
) -> Imported:
    """Write a sidecar and a power trace for every stage of the harness's run folders, and an attempt for every run that
    was killed.

    Labels that are not given come from the ``config_*.json`` beside a stage, else from names such as
    ``kd_32b_to_13b``, the innermost folder's first. What consumed what is not in the harness's logs and is linked by
    rule: a training reads the data set's preprocessing and, by pipeline, the teacher's logits (kd) or generation
    (synthetic) that its configuration names, among ``run_dirs`` and what ``out`` holds already; an evaluation reads the
    training whose output its configuration names, or that of the same pipeline and student. Two caches that differ, in
    temperature say, are alternatives: one is consumed, or UserError names both. ``missing_teacher`` lets a training in
    whose teacher artifact was not logged: its totals are then unknown, with the reason.
    """
    found = find(run_dirs)
    given = {"teacher": teacher, "student": student, "pipeline": pipeline, "dataset": dataset, "seed": seed}
    result, plans = Imported(left=found.left), []
    for log in found.stages:
        kind = stage or stage_kind(log)
        if kind is None:
            spent = total(components_of(log)[0])[0]
            why = f"cannot tell the kind of stage from its name {log.names[-1]!r}; pass --stage"
            result.left.append(Left(log.path, why, spent))
            continue
        plans.append(_Plan(log, kind, _labels(log, kind, given), _links(log)))
    datasets = {plan.labels["dataset"] for plan in plans} - {None}
    for (
        plan
    ) in plans:  # a preprocessing's configuration may name no data set: its name does, among those that others name
        if plan.labels["dataset"] is None:
            said = [d for d in datasets if any(d.lower() in name.lower() for name in plan.log.names)]
            plan.labels["dataset"] = said[0] if len(said) == 1 else "imported"
    if not plans:
        first = result.left[0]
        raise UserError(f"{first.path}: {first.why}")
    plans.sort(key=lambda plan: (ORDER.index(plan.kind), plan.log.start))
    known = _existing(Path(out))
    ready = []
    for plan in plans:  # everything is read, linked and named before anything is written
        if plan.kind == "evaluation" and not plan.log.killed:
            _labels_of_evaluated(plan, known)
        _complete(plan)
        parts, flags, notes = components_of(plan.log)
        key, labels = _identity(plan)
        consumes = _consumes(plan, known, missing_teacher) if not plan.log.killed else []
        more_flags, more_notes = _sums(plan.log)
        quality = quality_of(plan.log, [*flags, *more_flags], [*notes, *more_notes])
        ready.append((plan, key, labels, consumes, parts, quality))
        if not plan.log.killed:
            known = [one for one in known if one.key != key]  # imported before: once
            known.append(_Known(key, plan.labels, plan.links, _utc(plan.log.end)))
    for plan, key, labels, consumes, parts, quality in ready:
        if plan.log.killed:
            folder = _write_killed(plan, key, labels, parts, quality, Path(out))
            result.killed.append((folder, total(parts)[0]))
        else:
            result.folders.append(_write(plan, key, labels, consumes, parts, quality, Path(out)))
    return result


def _labels(log: StageLog, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Labels: what was given, else the configuration's, else what the innermost telling name says."""
    guess: dict[str, str] = {}
    for name in (*log.names, *reversed(log.path.parts)):
        if match := EXPERIMENT.search(name):
            guess = {k: v.lower() for k, v in match.groupdict().items()}
            break
    own = {
        "teacher": _basename(log.setting("model.teacher")),
        "student": _basename(log.setting("model.student")),
        "pipeline": _pipeline(log),
        "dataset": log.setting("data.dataset_choice"),
        "seed": log.setting("experiment.seed"),
    }
    labels = {key: given[key] if given[key] is not None else own[key] or guess.get(key) for key in own}
    labels["seed"] = int(labels["seed"] or 0)
    tried = {"alpha": "distillation.alpha", "temperature": "distillation.temperature"}
    if labels["pipeline"] != "kd":
        tried = {"examples": "synthetic_data.max_gen_examples"} if labels["pipeline"] == "synthetic" else {}
    tried |= {"optimizer": "training.optimizer", "learning_rate": "training.learning_rate"}
    settings = {name: log.setting(dotted) for name, dotted in tried.items()}
    labels["hyperparameters"] = {name: value for name, value in settings.items() if value is not None}
    for key in ("teacher", "student", "pipeline", "dataset"):
        if labels[key] is not None:
            try:
                labels[key] = check_part(str(labels[key]))
            except ValueError as error:
                raise UserError(f"{log.path}: {key}: {error}") from None
    return labels


def _pipeline(log: StageLog) -> str | None:
    """The harness's ``sft`` on data that a teacher wrote is ours ``synthetic``."""
    name = log.setting("pipeline")
    written = _basename(log.setting("synthetic_data.synthetic_dataset_path"))
    return "synthetic" if name == "sft" and written and "synthetic" in written.lower() else name


def _basename(path: Any) -> str | None:
    return str(path).rstrip("/").rsplit("/", 1)[-1] or None if path else None


def _links(log: StageLog) -> dict[str, Any]:
    """What a stage's configuration names as the things between stages; folders by their last name, since roots differ
    between machines."""
    wanted = {
        "teacher_logprobs": _basename(log.setting("data.dataset_teacher_logprobs")),
        "temperature": log.setting("distillation.temperature"),
        "top_k": log.setting("distillation.top_k_logits"),
        "synthetic": _basename(log.setting("synthetic_data.synthetic_dataset_path")),
        "output": _basename(log.setting("output.output_dir")),
        "evaluated": log.setting("benchmark.model"),
    }
    return {key: value for key, value in wanted.items() if value is not None}


def _labels_of_evaluated(plan: _Plan, known: Sequence[_Known]) -> None:
    """An evaluation's labels are those of the model that it names: its own configuration repeats a base one."""
    parts = str(plan.links.get("evaluated") or "").split("/")
    for one in known:
        if one.key[0] == "student_training" and one.links.get("output") in parts:
            plan.labels |= {k: one.labels[k] for k in plan.labels if k in one.labels}
            plan.links["training"] = "/".join(one.key)


def _complete(plan: _Plan) -> None:
    """UserError for a label without which the stage has no place."""
    if plan.kind in ("student_training", "evaluation") and not plan.log.killed:
        missing = [k for k in ("student", "pipeline") if plan.labels[k] is None]
        if missing:
            raise UserError(f"{plan.log.path}: the {missing[0]} is not in its name; pass --{missing[0]}")


def _existing(out: Path) -> list[_Known]:
    found = []
    for key, folder in artifact_folders(out):
        if (folder / "energy.json").is_file():
            record = read(folder / "energy.json")
            ended = record.attempts[-1].end_utc or ""
            found.append(_Known(key, record.labels, record.params.get("links") or {}, ended))
    return found


def _hash(*parts: Any) -> str:
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:12]


def _identity(plan: _Plan) -> tuple[Key, dict[str, Any]]:
    data, kind, labels = plan.log.data, plan.kind, plan.labels
    version = _hash(data["stage_id"], data["start_time"], data["end_time"], data["gpu_energy_joules"])
    teacher, dataset = labels["teacher"], labels["dataset"]
    if kind == "prerun":
        return (kind, "host", version), {}
    if kind == "preprocess":
        return (kind, f"data-{dataset}", version), {"dataset": dataset}
    if kind.startswith("teacher_"):
        return (kind, f"{teacher or 'teacher'}-{dataset}", version), {"teacher": teacher, "dataset": dataset}
    group = _hash(*(labels[k] for k in ("teacher", "dataset", "pipeline", "student", "hyperparameters")))
    labels = {**labels, "group": group, "role": "student"}
    name = f"{dataset}-{labels['pipeline']}-{labels['student']}-s{labels['seed']}"
    if kind == "student_training":
        return (kind, name, version), labels
    suite = re.sub(r"[^a-z0-9]+", "-", str(data.get("stage_name") or "eval").lower()).strip("-")
    return (kind, f"{suite}-{name}", version), {**labels, "suite": suite}


def _consumes(plan: _Plan, known: Sequence[_Known], missing_teacher: bool) -> list[Key]:
    kind, labels = plan.kind, plan.labels

    def matching(stage: str, *same: str) -> list[_Known]:
        return [k for k in known if k.key[0] == stage and all(_alike(k.labels.get(s), labels.get(s)) for s in same)]

    if kind in NEEDED.values():
        return [k.key for k in matching("preprocess", "dataset")]
    if kind == "student_training":
        found = [k.key for k in matching("preprocess", "dataset")]
        needed = NEEDED.get(labels["pipeline"])
        if needed is None:
            return found
        one = _teacher_artifact(plan, needed, matching(needed, "teacher", "dataset"))
        if one is None:
            what = f"{needed} of teacher {labels['teacher']} on {labels['dataset']}{_asked(plan, needed)}"
            if not missing_teacher:
                hint = "import that too, or pass --missing-teacher"
                raise UserError(f"{plan.log.path}: no {what} to link it to; {hint}")
            said = {k: plan.links[k] for k in _KEYS[needed] if k in plan.links}
            one = (needed, f"{labels['teacher'] or 'teacher'}-{labels['dataset']}", f"not-logged-{_hash(said)[:6]}")
        return [*found, one]
    if kind == "evaluation":
        if "training" in plan.links:
            return [tuple(plan.links["training"].split("/"))]
        return [k.key for k in matching("student_training", "teacher", "dataset", "pipeline", "student", "seed")][-1:]
    return []


def _alike(one: Any, other: Any) -> bool:
    """Equal, or one the size (``32b``) that the other, a model's whole name, holds."""
    if one == other or not isinstance(one, str) or not isinstance(other, str):
        return one == other
    pairs = ((one.lower(), other.lower()), (other.lower(), one.lower()))
    return any(re.fullmatch(r"[0-9.]+b", size) and size in name.split("-") for size, name in pairs)


def _asked(plan: _Plan, needed: str) -> str:
    """What the training's own configuration says of the artifact that it read."""
    if needed == "teacher_generation":
        return f" in {plan.links['synthetic']}" if "synthetic" in plan.links else ""
    return f" at temperature {plan.links['temperature']:g}" if "temperature" in plan.links else ""


def _teacher_artifact(plan: _Plan, needed: str, candidates: Sequence[_Known]) -> Key | None:
    """The one artifact that a training read, by its configuration before names; None if there is none.

    Of several that went into one folder it read the last that was there when it began: that one replaced the others.
    """
    keys, ours = _KEYS[needed], plan.links
    fitting = [c for c in candidates if all(c.links[k] == ours[k] for k in keys if k in c.links and k in ours)]
    if any(k in ours for k in keys):  # one that says so goes before one that says nothing
        fitting = [c for c in fitting if any(k in c.links for k in keys)] or fitting
    if len(fitting) > 1 and len({tuple(c.links.get(k) for k in keys) for c in fitting}) == 1 and fitting[0].links:
        there = [c for c in fitting if c.ended <= _utc(plan.log.start)]
        fitting = [max(there or fitting, key=lambda c: c.ended)]
    if len(fitting) > 1:
        shown = " and ".join("/".join(c.key) for c in fitting[:2])
        raise UserError(f"{plan.log.path}: {shown} could each be what it read; import the one that it is")
    return fitting[0].key if fitting else None


def _params(plan: _Plan) -> dict[str, Any]:
    params = {"imported_from": "reference harness", "stage_id": plan.log.data["stage_id"]}
    return params | ({"links": plan.links} if plan.links else {})


def _write(plan: _Plan, key: Key, labels, consumes, parts, quality: Quality, out: Path) -> Path:
    log, data = plan.log, plan.log.data
    tokens, per_token = _tokens()
    grams = _positive(data.get("codecarbon_emissions_kg"))
    sidecar = make_sidecar(
        key,
        parts,
        labels={k: v for k, v in labels.items() if v is not None},
        consumes=consumes,
        params=_params(plan),
        wall_s=log.end - log.start,
        start_utc=_utc(log.start),
        end_utc=_utc(log.end),
        tokens=tokens,
        j_per_token=per_token,
        co2e=Co2e(reason="the harness's CodeCarbon figure is of other joules than these; it is in results"),
        hardware=_hardware(log),
        software=_software(log),
        quality=quality,
        results={
            "harness_tokens_processed": data.get("tokens_processed"),
            "harness_total_energy_joules": data.get("total_energy_joules"),
            "harness_emissions_g": None if grams is None else grams * 1000,
            **({"precision": dtype} if (dtype := log.setting("training.dtype")) else {}),
        },
    )
    folder = write_sidecar(out, sidecar)
    if log.log is not None and log.log.inside(log.start - EDGE_S, log.end + EDGE_S).readings:
        _write_trace(log.log.inside(log.start - EDGE_S, log.end + EDGE_S), folder)
    return folder


def _write_killed(plan: _Plan, key: Key, labels, parts, quality: Quality, out: Path) -> Path:
    """The attempt of a run that was killed: it made no artifact, and its joules are wasted."""
    log = plan.log
    attempt = make_attempt(
        parts,
        host=_hardware(log).host,
        wall_s=log.end - log.start,
        start_utc=_utc(log.start),
        end_utc=_utc(log.end),
        outcome="killed",
        reason=log.notes[0],
        quality=quality,
    )
    folder = write_attempt(out, key, attempt, {k: v for k, v in labels.items() if v is not None})
    if log.log is not None:
        _write_trace(log.log.inside(log.start - EDGE_S, log.end + EDGE_S), folder)
    return folder


def _hardware(log: StageLog) -> Hardware:
    """The host that ``environment_*.json`` names, else the columns of the power log."""
    found = log.environment
    named = [g for g in found.get("gpus") or () if isinstance(g, Mapping)]
    columns = log.log.gpus if log.log is not None else ()
    gpus = [
        Gpu(
            uuid=f"gpu_{g.get('index', i)}",
            name=g.get("name"),
            power_limit_w=g.get("power_limit_watts"),
            driver=g.get("driver_version"),
        )
        for i, g in enumerate(named)
    ]
    cpu = found.get("cpu") or {}
    return Hardware(
        host=str(found.get("hostname") or "imported"),
        cpu=cpu.get("brand"),
        cores=cpu.get("logical_cores"),
        gpus=gpus or [Gpu(uuid=name.removesuffix("_power_w")) for name in columns],
    )


def _software(log: StageLog) -> Software | None:
    said = log.environment.get("software") or {}
    packages = {"torch": said.get("pytorch_version"), "transformers": said.get("transformers_version")}
    packages = {name: str(version) for name, version in packages.items() if version}
    return Software(python=str(said["python_version"]), packages=packages) if said.get("python_version") else None


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _write_trace(power: PowerLog, folder: Path) -> None:
    times = [t for t, _ in power.readings for _ in power.gpus]
    table = pa.table(
        {
            "attempt": pa.array(["imported"] * len(times)),
            "mono_s": pa.array(times, pa.float64()),
            "utc": pa.array([int(t * 1e6) for t in times], pa.timestamp("us", tz="UTC")),
            "component": pa.array(["gpu"] * len(times)),
            "device": pa.array([g.removesuffix("_power_w") for _ in power.readings for g in power.gpus]),
            "watts": pa.array([w for _, watts in power.readings for w in watts], pa.float64()),
            "counter_j": pa.array([None] * len(times), pa.float64()),
        }
    )
    write_parquet(folder / "power.parquet", table)
