"""Stage logs of the public reference harness (``stages/<id>/<id>.json`` and ``power_log.csv``) as sidecars.

The power log is integrated again (trapezoids, the first and last reading held to the stage's ends) and the harness's
own figure kept as the cross-check. What the harness did not record stays unknown; nothing is filled in.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import UserError
from ..ledger.build import make_sidecar, write_sidecar
from ..ledger.graph import Key
from ..ledger.rows import artifact_folders, canonical
from ..store.atomic import write_parquet
from ..store.sidecar import Co2e, Component, Gpu, Hardware, PerToken, Quality, Tokens, read

#: What the harness calls its stages, most particular first.
STAGE_WORDS = (
    ("prerun", ("burn_in", "prerun", "idle")),
    ("preprocess", ("preprocess",)),
    ("teacher_logits", ("logit", "teacher_forward")),
    ("teacher_generation", ("generation", "synthetic_gen")),
    ("evaluation", ("eval", "benchmark", "gsm8k", "mmlu", "ifeval", "alpaca", "mt_bench", "olmes")),
    ("student_training", ("train", "kd", "sft")),
)
EXPERIMENT = re.compile(r"(?P<pipeline>kd|sft|synthetic)[_-](?P<teacher>[0-9.]+b)[_-]to[_-](?P<student>[0-9.]+b)", re.I)
GAP = 3.0  # intervals without a reading that count as a gap


@dataclass(frozen=True)
class StageLog:
    """One stage of the harness."""

    path: Path
    data: Mapping[str, Any]
    readings: tuple[tuple[float, tuple[float, ...]], ...]  # unix seconds, watts by GPU
    gpus: tuple[str, ...]


def read_power_log(path: Path) -> tuple[tuple[tuple[float, tuple[float, ...]], ...], tuple[str, ...]]:
    """(readings, GPU column names) of a ``power_log.csv``; a torn last line is left out. UserError names a bad row."""
    with open(path, newline="", encoding="utf-8") as handle:
        reader = csv.reader(handle)
        header = next(reader, [])
        gpus = [name for name in header if re.fullmatch(r"gpu_\d+_power_w", name)]
        if not header or header[0] != "timestamp" or not gpus:
            raise UserError(
                f"{path}: expected columns timestamp, gpu_<n>_power_w, …; found {', '.join(header) or 'none'}"
            )
        columns = [header.index(name) for name in gpus]
        rows = list(reader)
    readings = []
    for number, row in enumerate(rows, 2):
        try:
            time_s, watts = float(row[0]), tuple(float(row[c]) for c in columns)
        except (ValueError, IndexError):
            if number == len(rows) + 1:
                break  # the harness was killed while writing
            raise UserError(f"{path}: line {number} is not a reading: {','.join(row)[:60]!r}") from None
        if not math.isfinite(time_s) or any(not math.isfinite(w) or w < 0 for w in watts):
            raise UserError(f"{path}: line {number}: watts are finite and not negative")
        readings.append((time_s, watts))
    return tuple(sorted(readings)), tuple(gpus)


def integrate(readings: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Joules of (seconds, watts) over [start, end] by trapezoids; edge readings are held to the ends."""
    inside = [(t, w) for t, w in readings if start <= t <= end]
    if not inside:
        raise ValueError("no reading inside the window")
    points = [(start, inside[0][1]), *inside, (end, inside[-1][1])]
    return math.fsum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in itertools.pairwise(points))


def find_stages(run_dir: Path) -> list[StageLog]:
    """The finished stages of a run folder (snapshots and summaries left out). UserError if there are none."""
    found = []
    for path in sorted(Path(run_dir).glob("**/*.json")):
        if path.stem != path.parent.name:
            continue
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(f"{path}: not a whole JSON document ({error})") from None
        if not isinstance(data, dict) or "stage_id" not in data or "gpu_energy_joules" not in data:
            continue
        log = path.parent / "power_log.csv"
        readings, gpus = read_power_log(log) if log.is_file() else ((), ())
        found.append(StageLog(path, data, readings, gpus))
    if not found:
        raise UserError(f"{run_dir}: no stage of the reference harness (expected stages/<id>/<id>.json)")
    return found


def stage_kind(log: StageLog) -> str:
    """Our stage for a stage of the harness, by its name. UserError if the name tells nothing."""
    name = str(log.data.get("stage_name") or log.data["stage_id"]).lower()
    for stage, words in STAGE_WORDS:
        if any(word in name for word in words):
            return stage
    raise UserError(f"{log.path}: cannot tell the kind of stage from its name {name!r}; pass --stage")


def components_of(log: StageLog) -> list[Component]:
    """GPU by integral (the harness's figure as cross-check), CPU and DRAM as far as they were recorded."""
    data = log.data
    start, end = float(data["start_time"]), float(data["end_time"])
    said = _positive(data.get("gpu_energy_joules"))
    parts = []
    usable = [r for r in log.readings if start <= r[0] <= end]
    if usable:
        for index, name in enumerate(log.gpus):
            joules = integrate([(t, w[index]) for t, w in log.readings], start, end)
            check = said if len(log.gpus) == 1 else None
            parts.append(
                Component(
                    component="gpu",
                    device=name.removesuffix("_power_w"),
                    source="measured",
                    method="nvml_power_integral",
                    gross_j=joules,
                    crosscheck_method="reference_harness" if check is not None else None,
                    crosscheck_j=check,
                    idle_reason="the harness measures no idle power for a stage",
                )
            )
    elif said is not None:
        parts.append(
            Component(
                component="gpu",
                source="measured",
                method="reference_harness",
                gross_j=said,
                idle_reason="the harness measures no idle power for a stage",
            )
        )
    else:
        parts.append(Component(component="gpu", source="unavailable", reason="neither a power log nor a GPU energy"))
    return [*parts, _cpu(data), _ram(data)]


def _positive(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else None


def _cpu(data: Mapping[str, Any]) -> Component:
    """RAPL (a start and a stop reading, so wraps are invisible) or CodeCarbon's estimate; the harness does not say
    which,
    but a value equal to CodeCarbon's is CodeCarbon's."""
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


def quality_of(log: StageLog) -> Quality:
    """Interval reached, gaps and coverage of the power log."""
    data = log.data
    asked = _positive(data.get("nvml_poll_interval_ms"))
    asked = asked / 1000 if asked else None
    start, end = float(data["start_time"]), float(data["end_time"])
    times = [start, *(t for t, _ in log.readings if start <= t <= end), end]
    steps = [b - a for a, b in itertools.pairwise(times)]
    flags = []
    if not log.readings:
        return Quality(
            interval_asked_s=asked, flags=["no_trace"], notes=["no power log: the harness's own integral is used"]
        )
    inner = sorted(steps[1:-1]) or [asked or 0.5]
    reached = inner[len(inner) // 2]
    limit = GAP * (asked or reached)
    gaps = [s for s in steps if s > limit]
    if gaps:
        flags.append("gap")
    covered = 1 - math.fsum(gaps) / (end - start) if end > start else 0.0
    if _positive(data.get("cpu_energy_joules")) is None:
        flags.append("gpu_only")
    return Quality(
        interval_asked_s=asked,
        interval_reached_s=reached,
        largest_gap_s=max(steps),
        gaps=len(gaps),
        coverage=max(0.0, min(1.0, covered)),
        flags=flags,
    )


def _tokens(data: Mapping[str, Any]) -> tuple[Tokens, PerToken]:
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
    dataset: str = "imported",
    seed: int = 0,
) -> list[Path]:
    """Write a sidecar and a power trace for every stage of the harness's run folders; returns their folders.

    Labels not given are read from names such as ``kd_32b_to_13b``. What consumed what is not in the harness's logs
    and is
    linked by rule: a training run reads the data set's preprocessing and, by pipeline, the teacher's logits (kd) or
    generation (synthetic) of the same teacher and data set among ``run_dirs`` and what ``out`` holds already; an
    evaluation reads the training of the same pipeline and student.
    """
    logs = [log for run_dir in run_dirs for log in find_stages(Path(run_dir))]
    plans = []
    for log in logs:
        kind = stage or stage_kind(log)
        found = EXPERIMENT.search(str(log.path))
        guess = {k: v.lower() for k, v in found.groupdict().items()} if found else {}
        labels = {
            "teacher": teacher or guess.get("teacher"),
            "student": student or guess.get("student"),
            "pipeline": pipeline or guess.get("pipeline"),
            "dataset": dataset,
        }
        plans.append((log, kind, labels))
    for log, kind, labels in plans:
        if kind in ("student_training", "evaluation"):
            missing = [k for k in ("student", "pipeline") if labels[k] is None]
            if missing:
                raise UserError(f"{log.path}: the {missing[0]} is not in its name; pass --{missing[0]}")
    order = {
        "prerun": 0,
        "preprocess": 1,
        "teacher_logits": 2,
        "teacher_generation": 2,
        "student_training": 3,
        "evaluation": 4,
    }
    plans.sort(key=lambda plan: order[plan[1]])
    known = _existing(Path(out))
    folders = []
    for log, kind, labels in plans:
        key, labels = _identity(log, kind, labels, seed)
        consumes = _consumes(kind, labels, known)
        if kind == "student_training":
            needed = {"kd": "teacher_logits", "synthetic": "teacher_generation"}.get(labels["pipeline"])
            if needed and not any(c[0] == needed for c in consumes):
                what = f"no {needed} of teacher {labels['teacher']} on {dataset}"
                raise UserError(f"{log.path}: {what} to link it to; import that too")
        folders.append(_write(log, key, labels, consumes, Path(out)))
        known.append((key, labels))
    return folders


def _existing(out: Path) -> list[tuple[Key, Mapping[str, Any]]]:
    return [
        (key, read(folder / "energy.json").labels)
        for key, folder in artifact_folders(out)
        if (folder / "energy.json").is_file()
    ]


def _hash(*parts: Any) -> str:
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:12]


def _identity(log: StageLog, kind: str, labels: dict[str, Any], seed: int) -> tuple[Key, dict[str, Any]]:
    data = log.data
    version = _hash(data["stage_id"], data["start_time"], data["end_time"], data["gpu_energy_joules"])
    teacher, dataset = labels["teacher"], labels["dataset"]
    if kind == "prerun":
        return (kind, "host", version), {}
    if kind == "preprocess":
        return (kind, f"data-{dataset}", version), {"dataset": dataset}
    if kind.startswith("teacher_"):
        return (kind, f"{teacher or 'teacher'}-{dataset}", version), {"teacher": teacher, "dataset": dataset}
    group = _hash(teacher, dataset, labels["pipeline"], labels["student"])
    labels = {**labels, "hyperparameters": {}, "seed": seed, "group": group, "role": "student"}
    name = f"{dataset}-{labels['pipeline']}-{labels['student']}-s{seed}"
    if kind == "student_training":
        return (kind, name, version), labels
    suite = re.sub(r"[^a-z0-9]+", "-", str(data.get("stage_name") or "eval").lower()).strip("-")
    return (kind, f"{suite}-{name}", version), {**labels, "suite": suite}


def _consumes(kind: str, labels: Mapping[str, Any], known: Sequence[tuple[Key, Mapping[str, Any]]]) -> list[Key]:
    def matching(stage: str, *same: str) -> list[Key]:
        return [k for k, other in known if k[0] == stage and all(other.get(s) == labels.get(s) for s in same)]

    if kind in ("teacher_logits", "teacher_generation"):
        return matching("preprocess", "dataset")
    if kind == "student_training":
        found = matching("preprocess", "dataset")
        needed = {"kd": "teacher_logits", "synthetic": "teacher_generation"}.get(labels["pipeline"])
        return found + (matching(needed, "teacher", "dataset") if needed else [])
    if kind == "evaluation":
        return matching("student_training", "teacher", "dataset", "pipeline", "student", "seed")[-1:]
    return []


def _write(log: StageLog, key: Key, labels: Mapping[str, Any], consumes: Sequence[Key], out: Path) -> Path:
    data = log.data
    start, end = float(data["start_time"]), float(data["end_time"])
    if not end > start:
        raise UserError(f"{log.path}: end_time {end} is not after start_time {start}: the stage did not finish")
    tokens, per_token = _tokens(data)
    grams = _positive(data.get("codecarbon_emissions_kg"))
    sidecar = make_sidecar(
        key,
        components_of(log),
        labels={k: v for k, v in labels.items() if v is not None},
        consumes=consumes,
        params={"imported_from": "reference harness", "stage_id": data["stage_id"]},
        wall_s=end - start,
        start_utc=_utc(start),
        end_utc=_utc(end),
        tokens=tokens,
        j_per_token=per_token,
        co2e=Co2e(reason="the harness's CodeCarbon figure is of other joules than these; it is in results"),
        hardware=Hardware(host="imported", gpus=[Gpu(uuid=name.removesuffix("_power_w")) for name in log.gpus]),
        quality=quality_of(log),
        results={
            "harness_tokens_processed": data.get("tokens_processed"),
            "harness_total_energy_joules": data.get("total_energy_joules"),
            "harness_emissions_g": None if grams is None else grams * 1000,
        },
    )
    folder = write_sidecar(out, sidecar)
    if log.readings:
        _write_trace(log, folder)
    return folder


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _write_trace(log: StageLog, folder: Path) -> None:
    times = [t for t, _ in log.readings for _ in log.gpus]
    table = pa.table(
        {
            "attempt": pa.array(["imported"] * len(times)),
            "mono_s": pa.array(times, pa.float64()),
            "utc": pa.array([int(t * 1e6) for t in times], pa.timestamp("us", tz="UTC")),
            "component": pa.array(["gpu"] * len(times)),
            "device": pa.array([g.removesuffix("_power_w") for _ in log.readings for g in log.gpus]),
            "watts": pa.array([w for _, watts in log.readings for w in watts], pa.float64()),
            "counter_j": pa.array([None] * len(times), pa.float64()),
        }
    )
    write_parquet(folder / "power.parquet", table)
