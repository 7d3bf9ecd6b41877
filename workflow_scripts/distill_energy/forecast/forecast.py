"""Forecast before spending: energy, time, storage and CO2e of a plan, with intervals, from FLOPs × efficiency.

Four grounds, best first: earlier executions of the same stage and model (J a token), rates measured for its shape
(``rates``), the host's calibration (FLOP/s and W of a matrix product) and a named hardware preset. Uncertainties are
drawn in logarithms; what is shared by all stages (how well this host does a kind of work) is drawn once for all, so
that totals are not too sure of themselves.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..answer.breakeven import JOULES_PER_KWH
from ..energy.co2 import grid_intensity
from ..errors import UserError
from ..ledger.graph import TEACHER
from ..plan import build_plan
from ..store.sidecar import STAGES
from .cases import data_key
from .rates import Measured, Rates
from .workload import Range, Sizes, Term, Workload, workload

#: Share of the machine's matrix-product rate that a kind of work reaches.
UTILISATION: dict[str, Range] = {
    "train": (0.15, 0.32, 0.55),
    "forward": (0.20, 0.42, 0.70),
    "generate": (0.01, 0.06, 0.25),
}
POWER: Range = (0.55, 0.85, 1.05)  # mean power over a stage as a share of the power under a matrix product
IDLE_SHARE: Range = (0.15, 0.35, 0.7)  # the same while loading
DRIFT, ANOTHER = 0.06, 0.04  # of a measured rate (in logarithms), shared by all rates and each one's own
#: A warm process's start as a share of a stage's, which loads less; and what is left of a stage's in its fork.
LIBRARIES: Range = (0.9, 1.2, 2.5)
WARM: Range = (0.01, 0.04, 0.15)
WORKER = "worker"  # the execution that a warm process's start is
EACH: Range = (0.65, 0.95, 1.3)  # what an execution adds, of what was measured: caches of the disk, cold or warm
LARGE = 1e9  # parameters from which reading the weights counts
DISK: Range = (3e8, 1e9, 3e9)  # bytes/s at which weights are read, which a trial with random ones does not
#: Savings of the student's training energy by distilling, as published (1B and 13B): used where nothing is measured.
PUBLISHED_SAVING: dict[str, Range] = {"teacher_logits": (0.09, 0.13, 0.18), "teacher_generation": (0.13, 0.14, 0.16)}


@dataclass(frozen=True)
class Basis:
    """What a forecast stands on: FLOP/s under a matrix product, W at that, and where the two are from."""

    flops_per_s: float
    watts: Range
    source: str
    watts_known: bool = True


#: Peak dense bf16 FLOP/s and board power of accelerators (manufacturers' data sheets); a CPU host for dry runs.
PRESETS = {
    "h100-80gb": Basis(989e12, (450.0, 600.0, 700.0), "preset h100-80gb (989 TFLOP/s bf16 dense, 700 W board)"),
    "a100-80gb": Basis(312e12, (280.0, 350.0, 400.0), "preset a100-80gb (312 TFLOP/s bf16 dense, 400 W board)"),
    "cpu-2-cores": Basis(8e11, (8.0, 20.0, 45.0), "preset cpu-2-cores (0.8 TFLOP/s bf16 with AMX, 20 W)"),
}
#: Presets are peaks that even a matrix product does not reach.
PRESET_SHARE: Range = (0.55, 0.7, 0.85)


def preset(name: str) -> Basis:
    """A named preset. Raises UserError with the known names."""
    try:
        return PRESETS[name]
    except KeyError:
        raise UserError(f"preset {name!r} is not one of {', '.join(PRESETS)}") from None


def calibration(path: str | Path) -> Basis | None:
    """The basis that a prerun's ``calibration.parquet`` gives; None without a usable row."""
    path = Path(path)
    if not path.is_file():
        return None
    rows = [r for r in pq.read_table(path).to_pylist() if r.get("flops_per_s")]
    if not rows:
        return None
    row = rows[0]
    watts = row.get("watts")
    known = watts is not None and watts > 0
    span = (watts * 0.9, watts, watts * 1.1) if known else PRESETS["cpu-2-cores"].watts
    source = f"calibration of this host ({row['flops_per_s'] / 1e9:.0f} GFLOP/s {row['dtype']}, "
    source += f"{watts:.0f} W)" if known else "power unknown: preset cpu-2-cores)"
    return Basis(row["flops_per_s"], span, source, known)


@dataclass(frozen=True)
class Rate:
    """Measured J and s a token of one stage and model, with the spread of its executions (in logarithms)."""

    joules: float
    seconds: float | None
    sd: float
    n: int
    bytes: float | None


def earlier_rates(rows: Sequence[Mapping[str, Any]]) -> dict[tuple, Rate]:
    """Rates by (stage, pipeline, model) of an earlier ledger's accepted rows that count tokens."""
    found: dict[tuple, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["status"] == "ok" and row["total_j"] and row["processed_tokens"]:
            found[_rate_key(row["stage"], row["pipeline"], _row_model(row))].append(row)
    rates = {}
    for key, members in found.items():
        logs = [math.log(m["total_j"] / m["processed_tokens"]) for m in members]
        mean = math.fsum(logs) / len(logs)
        spread = math.sqrt(math.fsum((v - mean) ** 2 for v in logs) / (len(logs) - 1)) if len(logs) > 1 else 0.2
        walls = [m["wall_s"] / m["processed_tokens"] for m in members if m["wall_s"]]
        sizes = [m["produced_bytes"] for m in members if m["produced_bytes"]]
        rates[key] = Rate(
            math.exp(mean),
            math.fsum(walls) / len(walls) if walls else None,
            max(spread, 0.05) + 0.1,  # another day, other neighbours
            len(members),
            math.fsum(sizes) / len(sizes) if sizes else None,
        )
    return rates


def _rate_key(stage: str, pipeline: str | None, model: str | None) -> tuple:
    return (stage, pipeline if stage == "student_training" else None, model)


def _row_model(row: Mapping[str, Any]) -> str | None:
    return row["student"] or row["teacher"]


def _draw(rng, span: Range, size: int, shared=None):
    """Draws of a range in logarithms: a triangle from low by likely to high. ``shared``: uniforms to use again."""
    low, mode, high = (math.log(max(v, 1e-12)) for v in span)
    if high - low < 1e-9:
        return np.full(size, math.exp(mode))
    mode = min(max(mode, low), high)
    u = rng.random(size) if shared is None else shared
    cut = (mode - low) / (high - low)
    left = low + np.sqrt(u * (high - low) * (mode - low))
    right = high - np.sqrt((1 - u) * (high - low) * (high - mode))
    return np.exp(np.where(u < cut, left, right))


class _Host:
    """Draws that every stage of a forecast shares."""

    def __init__(self, basis: Basis, draws: int, seed: int) -> None:
        self.draws = draws
        self.rng = np.random.default_rng(seed)
        self.basis = basis
        share = _draw(self.rng, PRESET_SHARE, draws) if basis.source.startswith("preset") else 1.0
        self.rate = {k: basis.flops_per_s * share * _draw(self.rng, span, draws) for k, span in UTILISATION.items()}
        self.watts = _draw(self.rng, basis.watts, draws) * _draw(self.rng, POWER, draws)
        self.loading = self.watts * _draw(self.rng, IDLE_SHARE, draws)
        self.guess = self.rng.random(draws)  # lengths and early stopping: a wrong guess is wrong for all stages
        self.fixed = self.rng.random(draws)
        self.drift = np.exp(DRIFT * self.rng.standard_normal(draws))  # another hour, other neighbours
        self._noise: dict[tuple, Any] = {}

    def noise(self, key: tuple, sd: float):
        """A factor for all executions that one rate speaks for: they are wrong together."""
        if key not in self._noise:
            self._noise[key] = np.exp(sd * self.rng.standard_normal(self.draws))
        return self.drift * self._noise[key]


def _rated(work: Workload, host: _Host, rates: Rates, data: Mapping[str, str], warm: bool):
    """(joules, seconds, source) of a stage by rates that were measured for it; None where none speaks for it."""
    if work.name == WORKER:
        return _worker(host, rates)
    labels = work.labels
    parameters = work.terms[0].parameters if work.terms else None
    kind, dataset = labels.get("pipeline_kind"), data.get(labels.get("dataset"))
    model = labels.get("model") if work.stage == "preprocess" else work.model
    found = rates.find(work.stage, model, parameters, labels.get("pipeline"), kind, dataset)
    if found is None:
        return None
    case = (work.stage, model, labels.get("pipeline"), dataset)
    joules, seconds = _added(work, host, found, case, warm)
    lacking = 0

    def do(term: Term):
        nonlocal lacking
        row = found.kinds.get(term.kind)
        if row is None or row["j_per_token"] is None:
            lacking += 1
            busy = _draw(host.rng, term.flops, host.draws, host.guess) / host.rate[term.kind]
            return busy * host.watts, busy
        noise = host.noise((*case, term.kind), math.hypot(found.log_sd(term.kind), ANOTHER))
        tokens = _draw(host.rng, term.computed or term.tokens, host.draws, host.guess) * noise
        return tokens * row["j_per_token"], tokens / row["tok_s"]

    parts = work.parts or {"": (work.terms, (0.0, 0.0, 0.0))}
    whole = set(found.facts.get("benchmarks") or ()) if "benchmarks" in found.kinds else set()
    if whole & set(parts):
        row, noise = found.kinds["benchmarks"], host.noise((*case, "benchmarks"), math.hypot(ANOTHER, found.disturbed))
        joules, seconds = joules + row["joules"] * noise, seconds + row["seconds"] * noise
    known = [row for row in found.kinds.values() if row["watts"] and row["tok_s"]]
    timed = math.fsum(row.get("seconds") or 1.0 for row in known)  # a short window's watts are the least sure
    power = math.fsum(row["watts"] * (row.get("seconds") or 1.0) for row in known) / timed if timed else None
    for name, (terms, extra) in parts.items():
        if name in whole:
            continue
        for term in terms:
            spent, took = do(term)
            joules, seconds = joules + spent, seconds + took
        if extra[2] > 0:
            row = found.kinds.get(name)
            mean = row["watts"] if row is not None else power
            took = _draw(host.rng, _timed(extra), host.draws, host.fixed)
            joules = joules + took * (host.watts if mean is None else mean * host.drift)
            seconds = seconds + took
    for kind, count in work.times_done.items():
        if (row := found.kinds.get(kind)) is not None and row["joules"] is not None:
            done = _draw(host.rng, count, host.draws, host.guess)
            joules, seconds = joules + done * row["joules"], seconds + done * row["seconds"]
    by = {
        text.partition(":")[0] for row in found.kinds.values() for text in row.get("notes") or () if text[:3] == "by "
    }
    return joules, seconds, ", ".join([rates.name, *sorted(by), *(["in part FLOPs"] if lacking else [])])


def _worker(host: _Host, rates: Rates):
    """A warm process's start: that of the stage that loads most, or more."""
    found = rates.starts()
    if not found:
        return None
    row = max(found, key=lambda row: row["joules"])
    share = _draw(host.rng, LIBRARIES, host.draws) * host.noise((WORKER,), ANOTHER)
    return row["joules"] * share, row["seconds"] * share, rates.name


def _timed(extra: Range) -> Range:
    """Seconds of work that is repeated until a stated time has passed: the last pass ends after it."""
    return (extra[0], extra[0] * 1.15, extra[0] * 1.5) if 0 < extra[0] < extra[1] else extra


def _added(work: Workload, host: _Host, found: Measured, case: tuple, warm: bool):
    """(joules, seconds) that an execution adds to its tokens."""
    if not found.fixed:
        fixed = _draw(host.rng, work.seconds, host.draws, host.fixed)
        return fixed * host.loading, fixed
    joules = seconds = 0.0
    watts = None
    for kind, row in found.fixed.items():
        share = _draw(host.rng, EACH, host.draws, host.fixed) * host.noise(
            (*case, kind), math.hypot(ANOTHER, found.disturbed)
        )
        if kind == "start" and warm:
            share = share * _draw(host.rng, WARM, host.draws)
        facts = found.facts
        if kind == "each" and facts.get("rows_of_stage"):
            share = share * facts["rows_of_stage"] / facts["rows"]
        joules, seconds, watts = joules + row["joules"] * share, seconds + row["seconds"] * share, row["watts"]
    parameters = work.terms[0].parameters if work.terms else 0.0
    if parameters > LARGE and watts:
        reading = 2.0 * parameters / _draw(host.rng, DISK, host.draws)
        joules, seconds = joules + reading * watts, seconds + reading
    return joules, seconds


def _stage_draws(
    work: Workload,
    host: _Host,
    rates: Mapping[tuple, Rate],
    measured: Rates | None = None,
    data: Mapping[str, str] | None = None,
    warm: bool = False,
):
    """(joules, seconds, bytes, source) of a stage, the first three as arrays of draws."""
    size = _draw(host.rng, work.bytes, host.draws, host.guess) if work.bytes[2] > 0 else np.zeros(host.draws)
    rate = rates.get(_rate_key(work.stage, work.labels.get("pipeline"), work.model))
    if rate is not None and work.terms:
        tokens = sum(_draw(host.rng, t.tokens, host.draws, host.guess) for t in work.terms)
        noise = np.exp(host.rng.standard_normal(host.draws) * rate.sd)
        seconds = tokens * rate.seconds * noise if rate.seconds else np.full(host.draws, np.nan)
        if rate.bytes:
            size = np.full(host.draws, rate.bytes)
        return tokens * rate.joules * noise, seconds, size, f"{rate.n} earlier executions"
    if measured is not None and (rated := _rated(work, host, measured, data or {}, warm)) is not None:
        return rated[0], rated[1], size, rated[2]
    fixed = _draw(host.rng, work.seconds, host.draws, host.fixed)
    busy = np.zeros(host.draws)
    for term in work.terms:
        busy += _draw(host.rng, term.flops, host.draws, host.guess) / host.rate[term.kind]
    return busy * host.watts + fixed * host.loading, busy + fixed, size, host.basis.source


def _span(values, confidence: float) -> Range:
    tail = (1 - confidence) / 2
    return tuple(float(v) for v in np.quantile(values, [tail, 0.5, 1 - tail]))


@dataclass
class Forecast:
    """``stages``: a row a kind of stage and the total. ``break_even``: a row a distilling pipeline and student.
    ``executions``: a row a planned execution."""

    stages: list[dict[str, Any]]
    break_even: list[dict[str, Any]]
    executions: list[dict[str, Any]]
    basis: str
    unknown: list[str]


def forecast(
    works: Sequence[Workload],
    basis: Basis,
    *,
    earlier: Sequence[Mapping[str, Any]] | None = None,
    done: Sequence[Mapping[str, Any]] | None = None,
    measured_rates: Rates | None = None,
    data: Mapping[str, str] | None = None,
    warm: bool = False,
    baseline: str = "sft",
    pue: float = 1.0,
    intensity_g_per_kwh: float | None = None,
    confidence: float = 0.9,
    draws: int = 4000,
    seed: int = 0,
) -> Forecast:
    """Forecast of planned executions.

    ``earlier``: rows of an earlier ledger whose rates replace the FLOPs where stage and model agree; next come
    ``measured_rates`` (``data``: data set → its name there; ``warm``: stages run in a warm process). ``done``: rows of
    this plan's own ledger, put beside the forecast as measured. Intervals hold ``confidence`` of the draws; energies in
    kWh, times in s (one execution after the other), sizes in bytes, CO2e in g.
    """
    host = _Host(basis, draws, seed)
    rates = earlier_rates(earlier) if earlier else {}
    measured = {(r["stage"], r["name"], r["version"]): r for r in done or () if r["status"] == "ok"}
    joules: dict[tuple, Any] = {}
    executions, unknown, by_rate = [], [], set()
    groups: dict[str, list] = defaultdict(list)
    for work in works:
        if work.unknown:
            unknown.append(f"{work.stage}/{work.name}: {work.unknown}")
            continue
        energy, seconds, size, source = _stage_draws(work, host, rates, measured_rates, data, warm)
        if measured_rates is not None and source == measured_rates.name:
            by_rate.add(work.key)
        joules[work.key] = energy
        real = measured.get(work.key) if work.name != WORKER else _started(measured)
        groups[work.stage].append((energy, seconds, size, real))
        low, mid, high = _span(energy / JOULES_PER_KWH, confidence)
        executions.append(
            {
                "stage": work.stage,
                "name": work.name,
                "version": work.version,
                "pipeline": work.labels.get("pipeline"),
                "student": work.labels.get("student"),
                "low_kwh": low,
                "likely_kwh": mid,
                "high_kwh": high,
                "seconds": float(np.nanmedian(seconds)) if not np.isnan(seconds).all() else None,
                "source": source,
                "measured_kwh": real["total_j"] / JOULES_PER_KWH if real and real["total_j"] is not None else None,
            }
        )
    lacking = defaultdict(int)
    for work in works:
        lacking[work.stage] += bool(work.unknown)
    stages = [_stage_row(stage, m, confidence, pue, intensity_g_per_kwh, lacking[stage]) for stage, m in groups.items()]
    stages.sort(key=lambda row: STAGES.index(row["stage"]))
    every = [member for members in groups.values() for member in members]
    if every:
        stages.append(_stage_row("total", every, confidence, pue, intensity_g_per_kwh, sum(lacking.values())))
    source = basis.source
    if measured_rates is not None:
        told = "; ".join(dict.fromkeys(row["source"] for row in executions))
        source = f"{measured_rates.name} for {len(by_rate)} of {len(executions)} executions" + (
            f" (others: {told})" if len(by_rate) < len(executions) else ""
        )
    breaks = _break_even(works, joules, rates, host, baseline, confidence, by_rate)
    return Forecast(stages, breaks, executions, source, unknown)


def _started(measured: Mapping[tuple, Mapping[str, Any]]) -> dict[str, Any] | None:
    """All starts of warm processes as one row."""
    rows = [row for key, row in measured.items() if key[:2] == ("prerun", WORKER)]
    spent = [row["total_j"] for row in rows]
    return {"total_j": None if None in spent else math.fsum(spent)} if rows else None


def _stage_row(stage, members, confidence, pue, intensity, lacking) -> dict[str, Any]:
    energy = sum(m[0] for m in members) / JOULES_PER_KWH
    row: dict[str, Any] = {"stage": stage, "executions": len(members), "unknown": lacking}
    spans = {"kwh": energy, "seconds": sum(m[1] for m in members), "bytes": sum(m[2] for m in members)}
    for unit, values in spans.items():
        row[f"low_{unit}"], row[f"likely_{unit}"], row[f"high_{unit}"] = _span(values, confidence)
    for end in ("low", "likely", "high"):
        row[f"{end}_co2e_g"] = None if intensity is None else row[f"{end}_kwh"] * pue * intensity
    real = [m[3]["total_j"] for m in members if m[3]]
    row["measured_executions"] = len(real)
    complete = len(real) == len(members) and None not in real
    row["measured_kwh"] = math.fsum(real) / JOULES_PER_KWH if complete else None
    return row


def _break_even(
    works, joules, rates, host: _Host, baseline: str, confidence: float, by_rate: Set[tuple] = frozenset()
) -> list[dict[str, Any]]:
    """N* by pipeline and student. The saving is that of earlier runs, of the tokens to train on (synthetic data), or,
    since FLOPs give a distilled student no cheaper training on the same tokens, the published one; ``saving`` says."""
    by_arm: dict[tuple, list[Workload]] = defaultdict(list)
    for work in works:
        if work.stage == "student_training" and not work.unknown:
            by_arm[tuple(work.labels.get(k) for k in ("dataset", "student", "pipeline", "teacher"))].append(work)
    bases = {key[:3]: members for key, members in by_arm.items() if key[2] == baseline}
    rows = []
    for (dataset, student, pipeline, _), members in by_arm.items():
        teachers = {c for m in members for c in m.consumes if c[0] in TEACHER}
        base = bases.get((dataset, student, baseline))
        if not teachers or base is None or any(t not in joules for t in teachers):
            continue
        artifacts = {m.consumes for m in members}
        teacher = sum(joules[t] for t in teachers) / max(len(teachers) / _per_run(members), 1)
        base_energy = sum(joules[m.key] for m in base) / len(base)
        measured = all(_rate_key("student_training", p, student) in rates for p in (pipeline, baseline))
        rated = all(m.key in by_rate for m in (*members, *base))
        if measured or rated:
            saving = base_energy - sum(joules[m.key] for m in members) / len(members)
            why = "earlier runs" if measured else "measured rates"
        else:
            kinds = {stage for stage, _, _ in teachers}
            if not kinds <= set(PUBLISHED_SAVING):
                continue  # of pairs nothing is published, and tokens are no ground: a pair costs two answers
            kind = next(iter(teachers))[0]
            saving = base_energy * _draw(host.rng, PUBLISHED_SAVING[kind], host.draws)
            why = "published savings of {:.0%} to {:.0%}".format(*PUBLISHED_SAVING[kind][::2])
        runs = len(members)
        star = np.where(saving > 0, teacher / np.where(saving > 0, saving, 1.0), np.inf)
        tails = [(1 - confidence) / 2, 0.5, (1 + confidence) / 2]
        low, mid, high = (float(v) for v in np.quantile(star, tails, method="inverted_cdf"))
        rows.append(
            {
                "dataset": dataset,
                "student": student,
                "pipeline": pipeline,
                "planned_runs_of_student": runs,
                "planned_n": _planned_reuse(works, teachers),
                "n_star_low": low if math.isfinite(low) else None,
                "n_star": mid if math.isfinite(mid) else None,
                "n_star_high": high if math.isfinite(high) else None,
                "never": float(np.isinf(star).mean()),
                "p_pays": float((star <= _planned_reuse(works, teachers)).mean()),
                "saving": why,
                "settings": len(artifacts),
            }
        )
    return rows


def _per_run(members: Sequence[Workload]) -> int:
    """How many teacher artifacts one run reads."""
    return max(sum(c[0] in TEACHER for c in m.consumes) for m in members)


def _planned_reuse(works: Sequence[Workload], teachers: set) -> int:
    """The reuse count that the plan implies: the least over the artifacts."""
    counts = [sum(t in w.consumes for w in works if w.stage == "student_training") for t in teachers]
    return min(counts, default=0)


def plan_forecast(
    config: Any,
    root: str | Path = "results",
    *,
    preset_name: str | None = None,
    earlier=None,
    done=None,
    rates: Rates | None = None,
):
    """The forecast of a validated configuration (``Config``): its plan, the best basis at hand, its grid and PUE.

    ``rates``: measured ones, which go before any guess from FLOPs. Without ``preset_name`` the newest calibration under
    ``root`` is used, else the preset ``h100-80gb`` if the configuration expects an H100, else ``cpu-2-cores``.
    """
    plain = config.model_dump(mode="json")
    sizes = Sizes(plain, root, rates.lengths() if rates else None)
    works = [workload(spec.to_json(), sizes) for spec in build_plan(config, str(root)).nodes.values()]
    warm = bool(config.warm_worker and rates is not None)
    if warm:
        works.append(Workload("prerun", WORKER, ""))
    basis = choose_basis(plain, root, preset_name)
    intensity = _intensity(plain["energy"])
    return forecast(
        works,
        basis,
        earlier=earlier,
        done=done,
        measured_rates=rates,
        warm=warm,
        data={name: data_key(config, name) for name in config.datasets},
        baseline=plain["accounting"]["baseline"],
        pue=plain["energy"].get("pue", 1.0),
        intensity_g_per_kwh=intensity,
    )


def choose_basis(config: Mapping[str, Any], root: str | Path, preset_name: str | None) -> Basis:
    """A preset by name, else the newest calibration, else the preset nearest to the hardware that is expected."""
    if preset_name is not None:
        return preset(preset_name)
    paths = sorted(Path(root).glob("prerun/*/*/calibration.parquet"), key=lambda p: p.stat().st_mtime)
    for path in reversed(paths):
        if (found := calibration(path)) is not None:
            return found
    expected = ((config["energy"].get("expect") or {}).get("gpu_name") or "").lower()
    return preset(next((n for n in PRESETS if expected and n.partition("-")[0] in expected), "cpu-2-cores"))


def _intensity(energy: Mapping[str, Any]) -> float | None:
    grid = energy.get("grid") or {}
    if grid.get("g_per_kwh") is not None:
        return float(grid["g_per_kwh"])
    if not grid.get("country"):
        return None

    return grid_intensity(grid["country"], grid.get("region"))[0]
