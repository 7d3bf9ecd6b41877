"""What the public reference harness leaves behind: stages, runs that were killed, and what is neither.

It writes ``stages/<id>/<id>.json`` when a stage ends, ``<id>__step_<n>.json`` while it runs, ``power_log.csv`` (to
which it appends), ``config_*.json`` and ``environment_*.json`` beside them, and an ``experiment_summary.json`` that
repeats its stages. People rename folders, move files and copy them. Every record found here is a stage, a killed run,
or named with its joules in what is left.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from .power_log import PowerLog, read_power_log, read_text

#: A stage's start is written anew into a summary, some microseconds apart.
SAME_START_S = 1.0
#: Edges of a stage's window at which its own readings may still lie.
EDGE_S = 5.0
SNAPSHOT = re.compile(r"__(step_?\d+|partial)$")
TIMES = ("start_time", "end_time")
NUMBERS = (
    "duration_seconds",
    "gpu_energy_joules",
    "gpu_avg_power_watts",
    "cpu_energy_joules",
    "total_energy_joules",
    "total_energy_kwh",
    "codecarbon_cpu_energy_kwh",
    "codecarbon_ram_energy_kwh",
    "codecarbon_emissions_kg",
    "nvml_poll_interval_ms",
)


@dataclass(frozen=True)
class StageLog:
    """One stage of the harness, or a run of it that was killed."""

    path: Path
    data: Mapping[str, Any]
    log: PowerLog | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    killed: bool = False
    notes: tuple[str, ...] = ()

    @property
    def start(self) -> float:
        return self.data["start_time"]

    @property
    def end(self) -> float:
        return self.data["end_time"]

    @property
    def names(self) -> list[str]:
        """What it is called, the most telling first: a folder that somebody renamed, the stage, its experiment."""
        own = [str(self.data.get(key)) for key in ("stage_name", "stage_id") if self.data.get(key)]
        folder = self.path.parent.name
        renamed = [folder] if folder not in (*own, "stages", "") else []
        return [*renamed, *own]

    def setting(self, dotted: str) -> Any:
        """A value of the stage's configuration, None where it has none."""
        value: Any = self.config
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


@dataclass(frozen=True)
class Left:
    """Something that was found and not imported: why, and what it says it spent (None: it does not say)."""

    path: Path
    why: str
    joules: float | None = None


@dataclass
class Found:
    """All that run folders hold."""

    stages: list[StageLog] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)


def find(run_dirs: Iterable[str | Path]) -> Found:
    """Stages, killed runs and what is left over, under all of ``run_dirs``. UserError if they hold no record."""
    run_dirs = [Path(run_dir) for run_dir in run_dirs]
    documents = _documents(run_dirs)
    found = Found()
    finished = _finished(documents, found)
    found.stages = [*finished, *_snapshots(documents, finished, found)]
    found.stages += _power_logs(run_dirs, documents, found.stages, found)
    if not found.stages and not found.left:
        raise UserError(f"{run_dirs[0]}: no stage of the reference harness (expected stages/<id>/<id>.json)")
    return found


def _documents(run_dirs: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Path → JSON object of every document that is not a companion, each file once."""
    documents, seen = {}, set()
    for run_dir in run_dirs:
        for path in sorted(run_dir.glob("**/*.json")):
            if path.name.startswith(("config_", "environment_")) or (real := path.resolve()) in seen:
                continue
            seen.add(real)
            data = _json(path)
            if isinstance(data, dict) and ("stage_id" in data or isinstance(data.get("stages"), dict)):
                documents[path] = data
    return documents


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not a whole JSON document ({error})") from None


def _finished(documents: Mapping[Path, dict], found: Found) -> list[StageLog]:
    """Stages that ended, by their own file or else by an experiment's summary; the same record counts once."""
    stages: list[StageLog] = []

    def known(path: Path, data: Mapping[str, Any]) -> StageLog | None:
        """The stage of which this is another record: equal joules, or one that lies in the same folder."""
        for stage in (s for s in stages if _same(s.data, data)):
            here = path.parent in (stage.path.parent, *stage.path.parent.parents)
            if here or stage.data["gpu_energy_joules"] == data["gpu_energy_joules"]:
                return stage
        return None

    own = [(p, d) for p, d in documents.items() if "stage_id" in d and not _is_snapshot(p, d)]
    own.sort(key=lambda item: (not _companion(item[0], item[1], "config"), str(item[0])))
    for path, data in own:
        data = checked(path, data)
        if (first := known(path, data)) is not None:
            found.left.append(Left(path, f"the same record as {first.path}"))
        elif data["gpu_energy_joules"] is None and data["total_energy_joules"] is None and _log_of(path, data) is None:
            found.left.append(Left(path, "neither a GPU energy nor a power log"))
        else:
            stages.append(_stage(path, data))
    for path, document in documents.items():
        for name, data in (document.get("stages") or {}).items() if "stage_id" not in document else ():
            if not isinstance(data, dict):
                raise UserError(f"{path}: stages.{name} is not an object")
            data = checked(path, {"stage_id": name, **data})
            if known(path, data) is None:
                stages.append(_stage(path, data, notes=("from the experiment's summary: the stage left no file",)))
    return stages


def _is_snapshot(path: Path, data: Mapping[str, Any]) -> bool:
    return data.get("snapshot") is True or SNAPSHOT.search(path.stem) is not None


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records are of one execution."""
    return one["stage_id"] == other["stage_id"] and abs(one["start_time"] - other["start_time"]) < SAME_START_S


def _snapshots(documents: Mapping[Path, dict], finished: Sequence[StageLog], found: Found) -> list[StageLog]:
    """Runs that left only snapshots: of each the last one, as a killed attempt."""
    groups: dict[tuple, list[tuple[Path, dict]]] = defaultdict(list)
    for path, data in documents.items():
        if "stage_id" in data and _is_snapshot(path, data):
            data = checked(path, data)
            if not any(_same(stage.data, data) for stage in finished):
                key = next((k for k in groups if k[0] == data["stage_id"] and abs(k[1] - data["start_time"]) < 1), None)
                groups[key or (data["stage_id"], data["start_time"])].append((path, data))
    killed = []
    for members in groups.values():
        path, data = max(members, key=lambda item: (item[1]["end_time"], str(item[0])))
        note = f"killed: the last of {len(members)} snapshot(s)"
        log = _log_of(path, data)
        session = (
            next((s for s in log.sessions() if s.start - EDGE_S <= data["start_time"] <= s.end), None) if log else None
        )
        if session is not None and session.end > data["end_time"]:  # it went on after its last snapshot
            note += f", its power log {session.end - data['end_time']:.0f} s longer"
            data = {**data, "end_time": session.end, "duration_seconds": None, "gpu_energy_joules": None}
        killed.append(_stage(path, data, killed=True, notes=(note,)))
    return killed


def _power_logs(
    run_dirs: Sequence[Path], documents: Mapping[Path, dict], stages: Sequence[StageLog], found: Found
) -> list[StageLog]:
    """Power logs, or sessions of one, that belong to no record: killed runs."""
    used: dict[Path, list[StageLog]] = defaultdict(list)
    for stage in stages:
        if stage.log is not None:
            used[stage.log.path.resolve()].append(stage)
    killed: list[StageLog] = []
    seen = set()
    for run_dir in run_dirs:
        for path in sorted(run_dir.glob("**/power_log.csv")):
            if (real := path.resolve()) in seen:
                continue
            seen.add(real)
            owners = used.get(real, [])
            log = owners[0].log if owners else read_power_log(path, _limit(path.parent))
            names = {_name_of(path), *(d.get("stage_id") for p, d in documents.items() if p.parent == path.parent)}
            for session in log.sessions():
                owned = [s for s in (owners or stages) if owners or s.data["stage_id"] in names]
                if any(s.start - EDGE_S <= session.end and session.start <= s.end + EDGE_S for s in owned):
                    if not owners:
                        found.left.append(Left(path, "the readings of a stage that another record holds"))
                    continue
                if len(session.readings) < 2:
                    found.left.append(Left(path, "one reading beside any stage", 0.0))
                    continue
                data = {"stage_id": _name_of(path), "start_time": session.start, "end_time": session.end}
                if any(_same(other.data, data) for other in killed):
                    found.left.append(Left(path, "the same readings as another log's"))
                    continue
                why = "beside the stages of its folder" if owners else "without a stage"
                data = dict.fromkeys((*TIMES, *NUMBERS)) | data
                killed.append(_stage(path, data, killed=True, notes=(f"killed: a power log {why}",)))
    return killed


def _name_of(log: Path) -> str:
    for path in sorted(log.parent.glob("config_*.json")):
        if isinstance(data := _json(path), dict) and data.get("stage_id"):
            return str(data["stage_id"])
    return log.parent.name


def _stage(path: Path, data: Mapping[str, Any], killed: bool = False, notes: Sequence[str] = ()) -> StageLog:
    if not data["end_time"] > data["start_time"]:
        times = f"end_time {data['end_time']} is not after start_time {data['start_time']}"
        raise UserError(f"{path}: {times}: the stage did not finish")
    config = _companion(path, data, "config")
    environment = _companion(path, data, "environment")
    log = _log_of(path, data)
    return StageLog(path, data, log, config.get("config") or {}, environment, killed, tuple(notes))


def _folders(path: Path, data: Mapping[str, Any]) -> list[Path]:
    """Where a record's companions lie: beside it, or in the folder of its stage where it was moved out of that."""
    return [path.parent, path.parent / str(data["stage_id"])]


def _companion(path: Path, data: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """``config_*.json`` or ``environment_*.json`` of a record, empty where there is none. Of several the one that names
    its stage."""
    for folder in _folders(path, data):
        paths = sorted(folder.glob(f"{kind}_*.json"))
        named = [p for p in paths if p.stem.endswith(f"__{data['stage_id']}")]
        if chosen := named or (paths if len(paths) == 1 else []):
            return value if isinstance(value := _json(chosen[0]), dict) else {}
    return {}


def _log_of(path: Path, data: Mapping[str, Any]) -> PowerLog | None:
    for folder in _folders(path, data):
        if (folder / "power_log.csv").is_file():
            return read_power_log(folder / "power_log.csv", _limit(folder))
    return None


def _limit(folder: Path) -> float | None:
    """The largest power limit of the GPUs that ``environment_*.json`` names, W."""
    limits = []
    for path in sorted(folder.glob("environment_*.json")):
        data = _json(path)
        gpus = data.get("gpus") if isinstance(data, dict) else None
        limits += [g["power_limit_watts"] for g in gpus or () if isinstance(g.get("power_limit_watts"), int | float)]
    return max(limits, default=None) or None


def checked(path: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its numbers as numbers (missing ones None). UserError names the file, the key and the value."""
    values = dict(data)
    for key in TIMES:
        values[key] = _time(path, key, data.get(key))
    for key in NUMBERS:
        values[key] = _number(path, key, data.get(key))
    return values


def _time(path: Path, key: str, value: Any) -> float:
    if value is None:
        raise UserError(f"{path}: {key} is missing: the harness writes Unix seconds")
    if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d", value):
        raise UserError(f"{path}: {key} {value!r} is ISO text; the harness writes Unix seconds")
    number = _number(path, key, value)
    if number > 1e11:
        raise UserError(f"{path}: {key} {value} looks like milliseconds; the harness writes Unix seconds")
    if number < 1e8:
        raise UserError(f"{path}: {key} {value} is no time of this century; the harness writes Unix seconds")
    return number


def _number(path: Path, key: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        comma = " (a decimal comma?)" if isinstance(value, str) and re.fullmatch(r"-?\d+,\d+", value.strip()) else ""
        raise UserError(f"{path}: {key} {value!r} is not a number{comma}")
    if not math.isfinite(value) or value < 0:
        raise UserError(f"{path}: {key} {value} is not a finite number of 0 or more")
    return float(value)
