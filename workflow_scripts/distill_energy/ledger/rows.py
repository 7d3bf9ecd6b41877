"""A ledger row: its columns, and how a validated sidecar becomes one."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..energy.attempts import made_it
from ..errors import UserError
from ..store.sidecar import STAGES, Attempt, Component, Sidecar, total, wall_seconds
from .graph import Key

#: Ledger columns and their Arrow types (see ``schema``). ``*_j`` joules, ``wall_s`` seconds, ``co2e_g`` grams.
COLUMNS: tuple[tuple[str, str], ...] = (
    ("stage", "string"),
    ("name", "string"),
    ("version", "string"),
    ("status", "string"),  # ok | duplicate | consumes_missing | orphan | elsewhere
    ("current", "bool"),
    ("recipe", "int64"),
    ("consumes", "list"),  # "stage/name/version"
    ("teacher", "string"),
    ("student", "string"),
    ("pipeline", "string"),
    ("dataset", "string"),
    ("hyperparameters", "string"),  # canonical JSON
    ("seed", "int64"),
    ("role", "string"),
    ("suite", "string"),
    ("run", "string"),
    ("group", "string"),
    ("baseline_group", "string"),
    ("student_params", "int64"),
    ("processed_tokens", "int64"),
    ("loss_tokens", "int64"),
    ("generated_tokens", "int64"),
    ("padding_tokens", "int64"),
    ("gpu_j", "double"),
    ("gpu_net_j", "double"),
    ("cpu_j", "double"),
    ("cpu_net_j", "double"),
    ("dram_j", "double"),
    ("dram_net_j", "double"),
    ("node_j", "double"),  # by a meter outside, of all the others and the rest of the machine
    ("node_explained", "double"),  # share of it that the sum of the parts explains
    ("total_j", "double"),
    ("total_net_j", "double"),
    ("idle_j", "double"),
    ("wasted_j", "double"),
    ("remade_j", "double"),  # of the wasted: attempts that completed and whose artifact was made again
    ("error_j", "double"),
    ("source", "string"),
    ("unknown_reason", "string"),
    ("wall_s", "double"),
    ("attempts", "int64"),
    ("start_j", "double"),  # of the attempts that made the artifact, by phase: see PHASES
    ("load_j", "double"),
    ("evaluate_j", "double"),
    ("write_j", "double"),
    ("flops", "double"),  # of the stage's work, once
    ("flop_per_s", "double"),  # by its wall time, loading and waiting included
    ("utilisation", "double"),  # its share of the accelerators' peak, or of the host's own matrix product
    ("j_per_token", "double"),
    ("j_per_token_divides_by", "string"),
    ("co2e_g", "double"),
    ("pue", "double"),
    ("intensity_g_per_kwh", "double"),
    ("grid_source", "string"),
    ("gpu_temperature_c", "double"),  # highest of the attempts that made the artifact, of all GPUs
    ("gpu_sm_clock_mhz", "double"),  # lowest of the GPUs' medians, as is the utilisation
    ("gpu_utilisation", "double"),
    ("gpu_memory_bytes", "double"),  # highest
    ("gpu_slowed", "double"),  # highest share of readings in which heat or the supply slowed a GPU
    ("coverage", "double"),
    ("interval_s", "double"),
    ("largest_gap_s", "double"),
    ("flags", "list"),
    ("left_out", "string"),  # of a data set: why rows are not in it, with their numbers
    ("host", "string"),
    ("hardware", "string"),
    ("execution", "string"),  # execution class: accelerators and major versions of the engines
    ("method", "string"),  # of a training: precision and loss kernel
    ("git_commit", "string"),
    ("git_dirty", "bool"),
    ("code_digest", "string"),
    ("software", "string"),  # JSON: package → version
    ("produced_bytes", "int64"),
    ("started_utc", "string"),
    ("created_utc", "string"),
    ("path", "string"),
)


#: Phase of a stage → what it is for. Everything else in a stage's window is its own computing.
PHASES = {
    "start": "start",
    "compile": "start",
    "verify": "start",
    "teacher_store": "load",
    "load": "load",
    "evaluation": "evaluate",
    "save": "write",
    "checkpoint": "write",
}

#: Rows of these statuses are no part of this workflow's energy.
OUTSIDE = ("duplicate", "elsewhere")


def counts(row: Mapping[str, Any]) -> bool:
    """Whether a row's joules were spent by this workflow: also those of an artifact that was made a second time."""
    return row["status"] not in OUTSIDE or "made_again" in row["flags"]


def is_worker(row: Mapping[str, Any]) -> bool:
    """Whether a row is a start of a warm process, which no configuration lists: it is of every one."""
    return row["stage"] == "prerun" and row["name"] == "worker"


@dataclass(frozen=True)
class Problem:
    """Something wrong with a record, named. ``rejected``: it has no row; else its row carries the flag ``kind``."""

    path: str
    kind: str  # rejected | duplicate | consumes_missing | orphan | unknown_energy
    message: str


def schema():
    """The ledger's Arrow schema."""
    types = {
        "string": pa.string(),
        "bool": pa.bool_(),
        "int64": pa.int64(),
        "double": pa.float64(),
        "list": pa.list_(pa.string()),
    }
    return pa.schema([(name, types[kind]) for name, kind in COLUMNS])


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def subfolders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def artifact_folders(root: Path) -> Iterator[tuple[Key, Path]]:
    """Every ``<root>/<stage>/<name>/<version>/`` of a known stage."""
    for stage in STAGES:
        for name in subfolders(f"{root}/{stage}"):
            for version in subfolders(f"{root}/{stage}/{name}"):
                yield (stage, name, version), root / stage / name / version


def component_sums(components: Sequence[Component], kind: str) -> tuple[float | None, float | None]:
    """(gross, net of idle) of one kind of component in joules; None if there is none or one is unknown."""
    parts = [c for c in components if c.component == kind and c.in_total]
    if not parts or any(c.gross_j is None for c in parts):
        return None, None
    gross = math.fsum(c.gross_j for c in parts)
    if any(c.idle_j is None for c in parts):
        return gross, None
    return gross, gross - math.fsum(c.idle_j for c in parts)


def sum_known(values: Sequence[float | None]) -> float | None:
    return None if not values or any(v is None for v in values) else math.fsum(values)


def label_columns(labels: Mapping[str, Any]) -> dict[str, Any]:
    def text(key: str) -> str | None:
        value = labels.get(key)
        return None if value is None else str(value)

    row = {
        key: text(key)
        for key in ("teacher", "student", "pipeline", "dataset", "role", "suite", "run", "group", "baseline_group")
    }
    row["hyperparameters"] = None if "hyperparameters" not in labels else canonical(labels["hyperparameters"])
    for key in ("seed", "student_params"):
        value = labels.get(key)
        row[key] = None if value is None else int(value)
    return row


def _hardware(sidecar: Sidecar) -> str | None:
    names = sorted({gpu.name or gpu.uuid for gpu in sidecar.hardware.gpus})
    return ", ".join([*names, sidecar.hardware.cpu] if sidecar.hardware.cpu else names) or None


#: Packages whose major version is part of an execution class.
ENGINES = ("torch", "transformers", "vllm")


def execution_class(sidecar: Sidecar) -> str | None:
    """What two energies must share to be compared: accelerators (or CPU) and their number, major versions of the
    engines. None where the record names no hardware. What trainings must share beside it is ``method``."""
    return engine_class(sidecar.hardware.model_dump(), sidecar.software.packages)


def engine_class(hardware: Mapping[str, Any], packages: Mapping[str, str]) -> str | None:
    """The execution class of hardware and packages as plain mappings."""
    if hardware["gpus"]:
        names = sorted(gpu["name"] or gpu["uuid"] for gpu in hardware["gpus"])
        parts = [f"{names.count(name)}× {name}" for name in dict.fromkeys(names)]
    elif hardware["cpu"]:
        parts = [f"{hardware['cores'] or '?'}× {hardware['cpu']}"]
    else:
        return None
    for name in ENGINES:
        if version := packages.get(name):
            parts.append(f"{name} {str(version).split('.')[0]}")
    return ", ".join(parts)


def _rate(flops: float | None, seconds: float | None) -> float | None:
    return flops / seconds if flops and seconds else None


def _remade(sidecar: Sidecar) -> float | None:
    """Joules of attempts that completed and did not make the committed artifact."""
    if len(sidecar.attempts) == 1:
        return 0.0
    useful = {id(attempt) for attempt in made_it(sidecar.attempts)}
    again = [a for a in sidecar.attempts if a.outcome == "completed" and id(a) not in useful]
    return sum_known([total(a.components)[0] for a in again]) if again else 0.0


#: Counts of a data set's results → what they say of its rows.
LEFT_OUT = {
    "n_filtered": "left out by their format",
    "n_repeated_rows": "repeated rows",
    "n_duplicates": "repeated conversations",
    "n_dropped": "without a label within max_length",
}


def left_out(results: Mapping[str, Any]) -> str | None:
    """Why rows of a data set are not in it, with their numbers, the commonest first; None if all of them are."""
    found = {words: results.get(key) or 0 for key, words in LEFT_OUT.items()}
    found |= {key: count for key, count in results.items() if key.startswith("refused: ")}
    said = sorted((item for item in found.items() if item[1]), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{reason} ({count:,})" for reason, count in said) or None


def _method(sidecar: Sidecar) -> str | None:
    """Precision and kernel of a training, as it resolved them; None for another stage."""
    found = [sidecar.results.get(key) for key in ("precision", "ce_kernel")]
    return ", ".join(str(value) for value in found if value) or None


def phase_joules(sidecar: Sidecar) -> dict[str, float | None]:
    """J of the attempts that made the artifact by what a phase is for; None where a phase's energy is unknown, or where
    the stage books none of the kind (its start, above all, in records of earlier versions): that is not 0."""
    found: dict[str, list[float | None]] = {name: [] for name in PHASES.values()}
    named = set()
    for attempt in made_it(sidecar.attempts):
        for phase in attempt.phases:
            named.add(phase.name)
            if phase.name in PHASES:
                found[PHASES[phase.name]].append(phase.gross_j)
    if "start" not in named:
        found["start"] = []
    return {name: math.fsum(values) if values and None not in values else None for name, values in found.items()}


def health_columns(sidecar: Sidecar) -> dict[str, float | None]:
    """What explains the joules, of the attempts that made the artifact; None where no GPU told it."""
    found = [health for attempt in made_it(sidecar.attempts) for health in attempt.health]

    def over(pick: Any, field: str, part: str) -> float | None:
        return pick((getattr(spread, part) for h in found if (spread := getattr(h, field)) is not None), default=None)

    return {
        "gpu_temperature_c": over(max, "temperature_c", "max"),
        "gpu_sm_clock_mhz": over(min, "sm_clock_mhz", "median"),
        "gpu_utilisation": over(min, "utilisation", "median"),
        "gpu_memory_bytes": over(max, "memory_used_bytes", "max"),
        "gpu_slowed": max((h.slowed for h in found if h.slowed is not None), default=None),
    }


def row_of(sidecar: Sidecar, path: str) -> dict[str, Any]:
    """The ledger row of a validated sidecar (``status`` ok, ``current`` False)."""
    row: dict[str, Any] = dict.fromkeys(name for name, _ in COLUMNS)
    row |= label_columns(sidecar.labels)
    if row["seed"] is None and sidecar.seed is not None:
        row["seed"] = sidecar.seed
    if sidecar.stage == "student_training" and row["run"] is None:
        row["run"] = sidecar.version  # its version holds data set, pipeline, hyperparameters, student and seed
    energy, tokens = sidecar.energy, sidecar.tokens
    for kind in ("gpu", "cpu", "dram"):
        row[f"{kind}_j"], row[f"{kind}_net_j"] = component_sums(energy.components, kind)
    known = [c.gross_j for c in energy.components if c.component == "node"]
    row["node_j"], row["node_explained"] = sum_known(known), energy.node_explained
    net = None if energy.gross_j is None or energy.idle_j is None else energy.gross_j - energy.idle_j
    quality = sidecar.quality
    row |= {
        "stage": sidecar.stage,
        "name": sidecar.name,
        "version": sidecar.version,
        "status": "ok",
        "current": False,
        "recipe": sidecar.recipe,
        "consumes": [f"{c.stage}/{c.name}/{c.version}" for c in sidecar.consumes],
        "processed_tokens": tokens.processed,
        "loss_tokens": tokens.loss,
        "generated_tokens": tokens.generated,
        "padding_tokens": tokens.padding,
        "total_j": energy.gross_j,
        "total_net_j": net,
        "idle_j": energy.idle_j,
        "wasted_j": energy.wasted_gross_j,
        "remade_j": _remade(sidecar),
        "error_j": energy.error_j,
        "source": energy.source,
        "unknown_reason": energy.reason if energy.gross_j is None else None,
        "wall_s": wall_seconds(sidecar.attempts),
        "attempts": len(sidecar.attempts),
        **{f"{name}_j": joules for name, joules in phase_joules(sidecar).items()},
        "flops": sidecar.results.get("flops"),
        "flop_per_s": _rate(sidecar.results.get("flops"), wall_seconds(sidecar.attempts)),
        "utilisation": sidecar.results.get("utilisation"),
        "j_per_token": sidecar.j_per_token.value,
        "j_per_token_divides_by": sidecar.j_per_token.divides_by,
        "co2e_g": sidecar.co2e.g,
        "pue": sidecar.co2e.pue,
        "intensity_g_per_kwh": sidecar.co2e.intensity_g_per_kwh,
        "grid_source": sidecar.co2e.source,
        **health_columns(sidecar),
        "coverage": quality.coverage,
        "interval_s": quality.interval_reached_s,
        "largest_gap_s": quality.largest_gap_s,
        "flags": list(quality.flags),
        "left_out": left_out(sidecar.results),
        "host": sidecar.hardware.host,
        "hardware": _hardware(sidecar),
        "execution": execution_class(sidecar),
        "method": _method(sidecar),
        "git_commit": sidecar.software.git_commit,
        "git_dirty": sidecar.software.git_dirty,
        "code_digest": sidecar.software.code_digest,
        "software": canonical({"python": sidecar.software.python, **sidecar.software.packages}),
        "produced_bytes": sum(p.bytes for p in sidecar.produces),
        "started_utc": sidecar.attempts[0].start_utc,
        "created_utc": sidecar.created_utc,
        "path": path,
    }
    return row


JOULES_PER_KWH = 3.6e6
#: Idle power is measured once, before the work, so that a stage that mostly waits may draw a little less.
IDLE_MARGIN = 1.25


def check(sidecar: Sidecar, key: Key, origin: str) -> None:
    """Raise UserError for what the schema cannot see: the wrong folder, totals below zero or not adding up."""
    said = (sidecar.stage, sidecar.name, sidecar.version)
    if said != key:
        raise UserError(f"{origin}: says it is {'/'.join(said)} but lies at {'/'.join(key)}")
    energy = sidecar.energy
    for field in ("gross_j", "idle_j", "wasted_gross_j", "error_j"):
        value = getattr(energy, field)
        if value is not None and (not math.isfinite(value) or value < 0):
            raise UserError(f"{origin}: energy.{field} = {value}: joules are finite and not negative")
    if (
        energy.gross_j is not None
        and energy.wasted_gross_j is not None
        and energy.wasted_gross_j > energy.gross_j * 1.001
    ):
        raise UserError(f"{origin}: energy.wasted_gross_j {energy.wasted_gross_j} exceeds gross_j {energy.gross_j}")
    parts = total(energy.components)[0]
    if energy.gross_j is not None and parts is not None and abs(parts - energy.gross_j) > 1e-3 * max(parts, 1.0):
        raise UserError(f"{origin}: energy.gross_j {energy.gross_j} is not the sum of its components {parts}")
    if energy.gross_j is not None and energy.idle_j is not None and energy.idle_j > IDLE_MARGIN * energy.gross_j:
        raise UserError(f"{origin}: energy.idle_j {energy.idle_j} exceeds gross_j {energy.gross_j}")
    tries = [total(attempt.components)[0] for attempt in sidecar.attempts]
    spent = sum_known(tries)
    if energy.gross_j is not None and spent is not None and abs(spent - energy.gross_j) > 1e-3 * max(spent, 1.0):
        raise UserError(f"{origin}: energy.gross_j {energy.gross_j} is not the sum of its attempts {spent}")
    for attempt in sidecar.attempts:
        _check_times(attempt, origin)
    for component in energy.components:
        gross, idle = component.gross_j, component.idle_j
        if gross is not None and idle is not None and idle > IDLE_MARGIN * gross:
            name = component.device or component.component
            raise UserError(f"{origin}: {name}: idle_j {idle} exceeds gross_j {gross}")
    if energy.source == "measured" and any(c.source == "estimated" and c.in_total for c in energy.components):
        raise UserError(f"{origin}: energy.source is measured, but a component of it is estimated")
    rate = sidecar.j_per_token
    count = None if rate.divides_by is None else getattr(sidecar.tokens, rate.divides_by)
    said = rate.value * count if rate.value is not None and count else None
    if None not in (said, energy.gross_j) and abs(said - energy.gross_j) > 1e-3 * max(energy.gross_j, 1e-9):
        shown = f"{energy.gross_j} J ÷ {count} {rate.divides_by} tokens"
        raise UserError(f"{origin}: j_per_token {rate.value} is not {shown}")
    for quality in (sidecar.quality, *(attempt.quality for attempt in sidecar.attempts)):
        if quality.coverage is not None and not 0 <= quality.coverage <= 1 + 1e-9:
            raise UserError(f"{origin}: quality.coverage = {quality.coverage}: a share is between 0 and 1")
    carbon = sidecar.co2e
    if carbon.pue is not None and not carbon.pue >= 1:
        raise UserError(f"{origin}: co2e.pue = {carbon.pue}: a facility draws no less than its hosts")
    if carbon.g is not None and carbon.intensity_g_per_kwh is not None and energy.gross_j is not None:
        grams = energy.gross_j / JOULES_PER_KWH * (carbon.pue or 1.0) * carbon.intensity_g_per_kwh
        if abs(grams - carbon.g) > 1e-3 * max(grams, 1e-9):
            raise UserError(f"{origin}: co2e.g {carbon.g} is not energy × PUE × grid intensity, {grams}")
    for name, value in sidecar.tokens.model_dump().items():
        if value is not None and value < 0:
            raise UserError(f"{origin}: tokens.{name} = {value}: a count is not negative")
    if sidecar.co2e.g is not None and sidecar.co2e.g < 0:
        raise UserError(f"{origin}: co2e.g = {sidecar.co2e.g}: grams are not negative")


def _check_times(attempt: Attempt, origin: str) -> None:
    """Raise UserError for an attempt, or a phase of it, that ended before it began."""
    where = f"{origin}: attempt {attempt.id}"
    for name, seconds in (("wall_s", attempt.wall_s), *((f"phase {p.name}", p.wall_s) for p in attempt.phases)):
        if seconds is not None and not seconds >= 0:
            raise UserError(f"{where}: {name} = {seconds}: time is not negative")
    if attempt.end_mono_s is not None and attempt.end_mono_s < attempt.start_mono_s:
        raise UserError(f"{where}: end_mono_s {attempt.end_mono_s} is before start_mono_s {attempt.start_mono_s}")
    try:
        times = [dt.datetime.fromisoformat(t) for t in (attempt.start_utc, attempt.end_utc) if t is not None]
        backwards = len(times) == 2 and times[1] < times[0]
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: start_utc, end_utc: not ISO 8601 times ({error})") from None
    if backwards:
        raise UserError(f"{where}: end_utc {attempt.end_utc} is before start_utc {attempt.start_utc}")


def key_of(row: Mapping[str, Any]) -> Key:
    return row["stage"], row["name"], row["version"]
