"""Rates: J/token, tok/s and utilisation of each stage and model shape, measured here in minutes (``rates.parquet``).

    distill-energy rates config.yaml --minutes 10
    distill-energy forecast config.yaml --rates rates.parquet

Random weights in the real shape do the work that the stage's own code asks for, so no weights, hub or data are needed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import scipy.stats
import yaml

from ..config.load import load_config
from ..config.schema import Config
from ..energy.host import describe_hardware
from ..errors import UserError
from ..ledger.rows import engine_class
from ..plan import build_plan
from ..store import bounded
from ..store.atomic import write_parquet
from ..store.sidecar import STAGES
from .cases import Case, cases, needs_live_teacher, tokenizer_of
from .memory import needed, parallelism, too_large
from .workload import Sizes

CONFIDENCE = 0.9
OVERHEAD_S = 15.0  # of a case beside its windows, before one was seen
LEAST_BUDGET_S = 4.0
NEIGHBOURS = 1.5  # of a rate's logarithm, where others kept all processors busy
OVERTIME = 0.2  # of the minutes that were asked for, before cases are left out
#: Parameters that two shapes may differ by and still be one.
SAME_SHAPE = 0.02
THREADS = (*(f"{name}_NUM_THREADS" for name in ("OMP", "GOTO", "OPENBLAS", "MKL", "NUMEXPR")), "VECLIB_MAXIMUM_THREADS")
FIXED = ("start", "each")  # kinds of an execution's own, whatever its tokens
PRESETS = Path(__file__).with_name("presets")

SCHEMA = pa.schema(
    [
        ("stage", pa.string()),
        ("model", pa.string()),
        ("parameters", pa.int64()),
        ("pipeline", pa.string()),
        ("pipeline_kind", pa.string()),
        ("data", pa.string()),
        ("kind", pa.string()),  # train, forward, generate; benchmarks, idle, matmul; an execution's start, each
        ("batch", pa.int64()),
        ("repeats", pa.int64()),
        ("tokens", pa.float64()),  # of a repeat, as are seconds and joules
        ("seconds", pa.float64()),
        ("joules", pa.float64()),
        ("tok_s", pa.float64()),
        ("j_per_token", pa.float64()),
        ("j_per_token_low", pa.float64()),
        ("j_per_token_high", pa.float64()),
        ("net_j_per_token", pa.float64()),
        ("watts", pa.float64()),
        ("flop_per_s", pa.float64()),
        ("utilisation", pa.float64()),  # FLOP/s over those of a matrix product on this host
        ("peak_bytes", pa.int64()),
        ("reason", pa.string()),  # why it is not measured, or what of it is unknown
        ("notes", pa.list_(pa.string())),
        ("facts", pa.string()),  # JSON
        ("execution", pa.string()),
        ("source", pa.string()),
        ("methods", pa.list_(pa.string())),
        ("provenance", pa.string()),  # JSON: host, hardware, driver, packages, code, command
        ("measured_utc", pa.string()),
    ]
)


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(
    config: Config,
    minutes: float = 10.0,
    command: str = "",
    log: Callable[[str], None] = print,
    only: Sequence[str] = (),
    each: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
    cores: int | None = None,
) -> list[dict[str, Any]]:
    """Rows of ``rates.parquet``: every case of a configuration, each in a process of its own, in ``minutes`` or so.

    ``only``: stages to measure, beside what they need (prerun, preprocess); none: all. ``each`` gets the rows so far
    after every case. ``cores``: threads of a case, as ``snakemake --cores`` gives a stage; None: all. What cannot be
    measured here is a row with its reason. Raises UserError if ``minutes`` is not above 0, ``only`` names what is no
    stage, or ``cores`` are more than there are.
    """
    if wrong := set(only) - set(STAGES):
        raise UserError(f"--only {min(wrong)}: is not one of {', '.join(STAGES)}")
    if not minutes > 0:
        raise UserError(f"--minutes {minutes:g}: must be above 0")
    hardware = describe_hardware()
    cores = hardware.cores if cores is None else cores
    if not 0 < cores <= hardware.cores:
        raise UserError(f"--cores {cores}: this host has 1 to {hardware.cores}")
    sizes = Sizes(config.model_dump(mode="json"))
    memory = [gpu.memory_bytes for gpu in hardware.gpus if gpu.memory_bytes]
    size = min(memory) if memory else hardware.ram_bytes
    where = (hardware.gpus[0].name or "the card") if memory else "this host"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="distill-energy-rates-") as folder:
        todo = cases(config, build_plan(config, str(Path(folder) / "plan")))
        if only:
            todo = [case for case in todo if case.stage in (*only, "prerun", "preprocess")]
        state = _Run(config, Path(folder), time.monotonic() + 60 * minutes, log, cores)
        for number, case in enumerate(todo):
            count = sizes.parameters(case.model)
            reason = None
            if count is not None and size and case.stage not in ("prerun", "preprocess"):
                reason = too_large(case.stage, case.job["params"], count, size, where)
            if reason is None and not (reason := state.lacking(case)):
                result = state.run(case, len(todo) - number)
                if result["out_of_memory"]:
                    least = 0 if count is None or not size else needed(case.stage, case.job["params"], count)
                    what = parallelism(case.stage, least, size or math.inf)
                    result["failed"] = f"does not fit {where} at the configuration's batch; {what} ({result['failed']})"
                made = rows_of(case, result, state.matmul, count, command)
            else:
                made = [_unmeasured(case, reason, count)]
            rows += made
            each(rows)
            for row in made:
                log(line(row))
    return rows


class _Run:
    """Runs cases one after the other, and keeps what later ones read."""

    def __init__(
        self, config: Config, folder: Path, deadline: float, log: Callable[[str], None], cores: int = 1
    ) -> None:
        self.config, self.folder, self.deadline, self.log = config, folder, deadline, log
        # What Snakemake sets for a job: a shell's own setting would measure other work than the study's.
        self.environment = os.environ | dict.fromkeys(THREADS, str(cores))
        self.overhead, self.overtime = OVERHEAD_S, OVERTIME * max(deadline - time.monotonic(), 0.0)
        self.idle: dict[str, Any] | None = None
        self.matmul: float | None = None
        self.prepared: dict[str, Path] = {}
        self.encoded: dict[str, Path] = {}
        energy = config.energy
        self.energy = {"interval_s": energy.interval_s, "jitter": energy.jitter, "cpu": energy.cpu}

    def lacking(self, case: Case) -> str | None:
        """What an earlier case should have made and did not."""
        for name in {case.job.get("origin"), case.job.get("teacher_origin") if needs_live_teacher(case) else None}:
            if name is not None and self.config.models[name].source == "gguf" and name not in self.prepared:
                return f"{name} could not be converted, so its shape is not known"
        return None

    def run(self, case: Case, left: int) -> dict[str, Any]:
        """The case's result. A process that ends badly or late is one that failed, with its last words."""
        begin = time.monotonic()
        share = (self.deadline - begin) / left
        if self.deadline + self.overtime <= begin:
            return _failed("no time was left for it: raise --minutes")
        budget = max(LEAST_BUDGET_S, share - self.overhead)
        job = self._job(case, budget)
        work = Path(job["work"])
        work.mkdir(parents=True, exist_ok=True)
        (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
        arguments = [sys.executable, "-m", f"{__package__}.bench", str(work / "job.json"), str(work / "result.json")]
        limit = 3 * budget + 4 * self.overhead + 60
        with (
            open(work / "log", "wb") as stream,
            subprocess.Popen(arguments, stdout=stream, stderr=stream, env=self.environment) as child,
        ):
            try:
                child.wait(limit)
            except subprocess.TimeoutExpired:
                child.terminate()
                try:
                    child.wait(20)
                except subprocess.TimeoutExpired:
                    child.kill()
                return _failed(f"one unit of its work takes longer than the {limit:.0f} s that were left for it")
        if child.returncode or not (work / "result.json").is_file():
            words = (work / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return _failed(f"its process ended with {child.returncode} ({words[-1][:200] if words else 'no output'})")
        result = json.loads((work / "result.json").read_text(encoding="utf-8"))
        spent = sum(w["seconds"] for w in result["windows"])
        self.overhead = 0.5 * self.overhead + 0.5 * min(max(time.monotonic() - begin - spent, 1.0), 120.0)
        self._keep(case, job, result)
        return result

    def _job(self, case: Case, budget: float) -> dict[str, Any]:
        job, config = dict(case.job), self.config
        work = self.folder / case.name.replace("/", "_").replace(" ", "_")
        inputs = {
            role: str(self.prepared[job[key]])
            for role, key in (("model", "origin"), ("teacher", "teacher_origin"))
            if job.get(key) in self.prepared
        }
        job |= {"work": str(work), "out": str(work / "out"), "budget_s": budget, "inputs": inputs}
        job |= {"energy": self.energy, "idle": self.idle}
        dataset = job.get("dataset")
        job["data"] = str(self.encoded[dataset]) if dataset in self.encoded else None
        if case.stage == "evaluation":
            job["tokenizer"] = tokenizer_of(config, case.model, self.prepared)
            job["own"] = job["own"] if job["tokenizer"] else {}
        return job

    def _keep(self, case: Case, job: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        facts = result["facts"]
        if case.stage == "prerun" and result["failed"] is None:
            self.idle, self.matmul = facts["idle"], facts["matmul_flops_per_s"]
        elif case.stage == "preprocess" and result["failed"] is None:
            if case.model is not None:
                self.prepared[case.model] = Path(job["out"])
            else:
                self.encoded[job["dataset"]] = Path(job["out"])


def _failed(reason: str) -> dict[str, Any]:
    return {"windows": [], "facts": {}, "notes": [], "failed": reason, "out_of_memory": False}


def rows_of(
    case: Case, result: Mapping[str, Any], matmul: float | None, count: float | None, command: str
) -> list[dict[str, Any]]:
    """A case's rows: one a kind of work, and what an execution takes whatever its tokens: ``start``, ``each``."""
    facts = result["facts"]
    if not result["windows"] and "fixed" not in result:
        return [_unmeasured(case, result["failed"], count)]
    if result["failed"] is not None:
        return [_unmeasured(case, result["failed"], facts.get("parameters", count))]
    common = _named(case, facts.get("parameters", count)) | _provenance(result, command)
    common |= {"peak_bytes": result["peak_bytes"], "notes": result["notes"], "facts": json.dumps(facts)}
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for window in result["windows"]:
        kinds.setdefault(window["kind"], []).append(window)
    rows = [common | _row(kind, windows, result, matmul) for kind, windows in kinds.items()]
    for kind, part in result["fixed"].items():
        known = part["joules"] is not None
        watts = part["joules"] / part["seconds"] if known and part["seconds"] else None
        reason = None if known else "the meter knows no joules of it"
        rows.append(common | {"kind": kind, "repeats": 1, "watts": watts, "reason": reason} | part)
    return rows


def _row(kind: str, windows: Sequence[Mapping[str, Any]], result: Mapping[str, Any], matmul: float | None):
    n = len(windows)
    seconds = math.fsum(w["seconds"] for w in windows)
    spent = [w["joules"] for w in windows]
    joules = None if None in spent else math.fsum(spent)
    row: dict[str, Any] = {"kind": kind, "repeats": n, "batch": windows[0].get("batch"), "seconds": seconds / n}
    row |= {"joules": None if joules is None else joules / n, "watts": None if joules is None else joules / seconds}
    row["reason"] = None if joules is not None else "the meter knows no joules of it"
    if any(w["tokens"] is None for w in windows):
        return row
    tokens = math.fsum(w["tokens"] for w in windows)
    row |= {"tokens": tokens / n, "tok_s": tokens / seconds}
    each = (result["facts"].get("flops_per_token") or {}).get(kind)
    if each is not None:
        row["flop_per_s"] = each * tokens / seconds
        row["utilisation"] = row["flop_per_s"] / matmul if matmul else None
    if joules is None or joules <= 0:
        return row
    row["j_per_token"] = joules / tokens
    span = interval([w["joules"] / w["tokens"] for w in windows])
    row["j_per_token_low"], row["j_per_token_high"] = span or (None, None)
    if result["idle_watts"] is not None:
        row["net_j_per_token"] = (joules - result["idle_watts"] * seconds) / tokens
    lacks = []
    if span is None:
        lacks.append("one repeat gives no interval")
    if result["idle_watts"] is None:
        lacks.append("no idle power is known, so no net")
    row["reason"] = "; ".join(lacks) or None
    return row


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Student's t on the logarithms of repeats; None for fewer than two, or one that is not above 0."""
    if len(values) < 2 or min(values) <= 0:
        return None
    logs = [math.log(v) for v in values]
    mean = math.fsum(logs) / len(logs)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in logs) / (len(logs) - 1))
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, len(logs) - 1)) * sd / math.sqrt(len(logs))
    return math.exp(mean - half), math.exp(mean + half)


def _named(case: Case, count: float | None) -> dict[str, Any]:
    named = dict.fromkeys(SCHEMA.names) | {
        "stage": case.stage,
        "model": case.model,
        "pipeline": case.pipeline,
        "data": case.data,
    }
    return named | {"pipeline_kind": case.pipeline_kind, "parameters": None if count is None else int(count)}


def _unmeasured(case: Case, reason: str | None, count: float | None) -> dict[str, Any]:
    return _named(case, count) | {"reason": reason or "not measured", "notes": [], "methods": []}


def _provenance(result: Mapping[str, Any], command: str) -> dict[str, Any]:
    hardware, software = result["hardware"], result["software"]
    known = {"hardware": hardware, "software": software, "command": command}
    return {
        "provenance": json.dumps(known),
        "execution": engine_class(hardware, software["packages"]),
        "source": ", ".join(result["source"]) or None,
        "methods": result["methods"],
        "measured_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def line(row: Mapping[str, Any]) -> str:
    """A row for a reader."""
    name = "/".join(str(row[key]) for key in ("stage", "pipeline", "model", "data") if row.get(key))
    if row.get("kind") is None:
        return f"{name}: not measured: {row['reason']}"
    text = f"{name} {row['kind']}:"
    if row.get("tok_s") is not None:
        text += f" {row['tok_s']:,.0f} tok/s"
        if row.get("j_per_token") is not None:
            text += f", {row['j_per_token']:.4g} J/token"
        if row.get("j_per_token_low") is not None:
            text += f" ({row['j_per_token_low']:.4g} to {row['j_per_token_high']:.4g})"
    else:
        text += f" {row['seconds']:.1f} s" + ("" if row["joules"] is None else f", {row['joules']:.1f} J")
    if row.get("watts") is not None:
        text += f", {row['watts']:.0f} W"
    if row.get("utilisation") is not None:
        text += f", {row['utilisation']:.0%} of a matrix product's FLOP/s"
    if row.get("notes") and row["kind"] not in FIXED:
        text += f" ({'; '.join(row['notes'])})"
    return text


# --- file -------------------------------------------------------------------------------------------------------------


def write_rates(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``rates.parquet``."""
    full = [{name: row.get(name) for name in SCHEMA.names} for row in rows]
    write_parquet(Path(path), pa.Table.from_pylist(full, schema=SCHEMA))


def presets() -> list[str]:
    """Names of the rates that the project ships: measured ones, with their provenance."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_rates(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a ``rates.parquet`` or of a preset by its name. Raises UserError naming the file, or the known names."""
    place = Path(path)
    if not place.is_file():
        place = PRESETS / f"{path}.yaml"
    if not place.is_file():
        raise UserError(f"{path}: neither a file of rates nor one of {', '.join(presets())}")
    if place.suffix == ".yaml":
        return _preset_rows(place)
    bounded.check(place)
    try:
        table = pq.read_table(place)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{place}: cannot be read ({error})") from None
    lacking = {"stage", "kind", "j_per_token", "tok_s"} - set(table.column_names)
    if lacking:
        raise UserError(f"{place}: is no file of rates (no column {min(lacking)})")
    return table.to_pylist()


def _preset_rows(path: Path) -> list[dict[str, Any]]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    shared = {"measured_utc": content["date"], "provenance": json.dumps(content["provenance"]), "notes": []}
    shared |= {"execution": content["execution"], "source": "measured", "facts": None}
    rows = []
    for row in content["rates"]:
        full = dict.fromkeys(SCHEMA.names) | shared | row
        if full["j_per_token"] is not None and full["watts"] is None:
            full["watts"] = full["j_per_token"] * full["tok_s"]
        rows.append(full)
    return rows


# --- what a forecast asks ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Rates of one stage and shape by kind of work; ``fixed``: what an execution takes beside its tokens, of which its
    start is known apart."""

    kinds: Mapping[str, Mapping[str, Any]]
    fixed: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any]

    def log_sd(self, kind: str) -> float:
        """Spread of a rate's logarithm: of its repeats (0.1 where one gave none), and of a host that others kept busy,
        which makes the same work up to several times as dear."""
        low, high = (self.kinds[kind].get(f"j_per_token_{end}") for end in ("low", "high"))
        repeats = 0.1 if not low or not high else math.log(high / low) / (2 * 1.645)
        return math.hypot(repeats, self.disturbed)

    @property
    def disturbed(self) -> float:
        """What a host that others kept busy adds to the spread."""
        return NEIGHBOURS * (self.facts.get("neighbours") or 0.0)


class Rates:
    """Measured rates, looked up by stage, pipeline and the model's name or, failing that, its count of parameters."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], name: str = "rates") -> None:
        self.rows = [row for row in rows if row.get("kind") is not None]
        self.name = name

    def find(
        self,
        stage: str,
        model: str | None = None,
        parameters: float | None = None,
        pipeline: str | None = None,
        pipeline_kind: str | None = None,
        dataset: str | None = None,
    ) -> Measured | None:
        """The rates that speak for a stage; None where none was measured for its shape."""
        found = [row for row in self.rows if row["stage"] == stage]
        if stage == "student_training":
            named = [row for row in found if row["pipeline"] == pipeline and pipeline is not None]
            found = named or [row for row in found if row["pipeline_kind"] == pipeline_kind]
        if stage == "preprocess":
            found = [r for r in found if r["model"] == model and (model is not None or r["data"] == dataset)]
        elif stage != "prerun":
            named = [row for row in found if row["model"] == model and model is not None]
            found = named or [row for row in found if same_shape(row["parameters"], parameters)]
            found = [row for row in found if row["data"] == dataset] or found
        if not found:
            return None
        first = next(row for row in found)
        ours = [row for row in found if all(row[k] == first[k] for k in ("model", "pipeline", "data"))]
        known = {row["kind"]: row for row in ours if row["joules"] is not None or row["j_per_token"] is not None}
        fixed = {kind: known.pop(kind) for kind in FIXED if kind in known}
        return Measured(known, fixed, json.loads(first.get("facts") or "{}"))

    def starts(self) -> list[Mapping[str, Any]]:
        """What loading their libraries took stages of known joules."""
        return [row for row in self.rows if row["kind"] == "start" and row["joules"] is not None]

    def lengths(self) -> dict[str, tuple[float, float]]:
        """Data set → (tokens, response tokens) of an example, where its rows were encoded."""
        found = {}
        for row in self.rows:
            facts = json.loads(row.get("facts") or "{}")
            if row["stage"] == "preprocess" and row["data"] and "tokens_per_example" in facts:
                found[row["data"]] = (facts["tokens_per_example"], facts["labels_per_example"])
        return found


def same_shape(ours: float | None, theirs: float | None) -> bool:
    """Whether two counts of parameters are one shape's."""
    return bool(ours and theirs and abs(math.log(ours / theirs)) < SAME_SHAPE)


# --- command ----------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """``distill-energy rates CONFIG``."""
    parser = argparse.ArgumentParser(
        prog="distill-energy rates", description="measure on this host the rates of every stage that a study implies"
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, default=Path("rates.parquet"), help="where they are written")
    parser.add_argument("--minutes", type=float, default=10.0, help="about how long it may take")
    parser.add_argument("--only", nargs="+", default=(), metavar="STAGE", help="these stages alone")
    parser.add_argument("--cores", type=int, metavar="N", help="as the study's snakemake --cores N; all by default")
    options = parser.parse_args(arguments)
    command = shlex.join(["distill-energy", "rates", *(sys.argv[2:] if arguments is None else arguments)])
    try:
        config = load_config(options.config)
        rows = measure(
            config,
            options.minutes,
            command,
            lambda text: print(text, flush=True),
            options.only,
            lambda rows: write_rates(options.out, rows),  # what is measured is kept if this is ended
            options.cores,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    lacking = sum(row.get("kind") is None for row in rows)
    print(f"{options.out}: {len(rows) - lacking} rates" + (f", {lacking} not measured" if lacking else ""))
    return 0
