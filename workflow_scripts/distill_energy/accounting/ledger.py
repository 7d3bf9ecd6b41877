"""The ledger: one row a stage execution, read from the sidecars, and the problems found while reading.

A sidecar that cannot be trusted (truncated, of another schema, negative joules, in another folder than it says) is
rejected; one that repeats another is kept as a ``duplicate`` row and one whose consumed artifacts have no sidecar as
``consumes_missing``. Every such case is a :class:`Problem` and only rows of status ``ok`` (or ``orphan``, for what was
wasted) enter a sum or a figure.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..store.sidecar import SIDECAR_NAME, STAGES, Attempt, Component, Sidecar, parse, read, total
from ..store.teacher_store import consumers
from .graph import Key, Provenance

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
    ("total_j", "double"),
    ("total_net_j", "double"),
    ("idle_j", "double"),
    ("wasted_j", "double"),
    ("error_j", "double"),
    ("source", "string"),
    ("unknown_reason", "string"),
    ("wall_s", "double"),
    ("attempts", "int64"),
    ("j_per_token", "double"),
    ("j_per_token_divides_by", "string"),
    ("co2e_g", "double"),
    ("pue", "double"),
    ("intensity_g_per_kwh", "double"),
    ("grid_source", "string"),
    ("coverage", "double"),
    ("interval_s", "double"),
    ("largest_gap_s", "double"),
    ("flags", "list"),
    ("host", "string"),
    ("hardware", "string"),
    ("git_commit", "string"),
    ("git_dirty", "bool"),
    ("code_digest", "string"),
    ("software", "string"),  # JSON: package → version
    ("produced_bytes", "int64"),
    ("started_utc", "string"),
    ("created_utc", "string"),
    ("path", "string"),
)


#: Rows of these statuses are no part of this workflow's energy.
OUTSIDE = ("duplicate", "elsewhere")


@dataclass(frozen=True)
class Problem:
    """Something wrong with a record, named. ``rejected``: it has no row; else its row carries the flag ``kind``."""

    path: str
    kind: str  # rejected | duplicate | consumes_missing | orphan | unknown_energy
    message: str


def schema():
    """The ledger's Arrow schema."""
    import pyarrow as pa

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


def _subfolders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def artifact_folders(root: Path) -> Iterator[tuple[Key, Path]]:
    """Every ``<root>/<stage>/<name>/<version>/`` of a known stage."""
    for stage in STAGES:
        for name in _subfolders(f"{root}/{stage}"):
            for version in _subfolders(f"{root}/{stage}/{name}"):
                yield (stage, name, version), root / stage / name / version


def _component_sums(components: Sequence[Component], kind: str) -> tuple[float | None, float | None]:
    """(gross, net of idle) of one kind of component in joules; None if there is none or one is unknown."""
    parts = [c for c in components if c.component == kind and c.in_total]
    if not parts or any(c.gross_j is None for c in parts):
        return None, None
    gross = math.fsum(c.gross_j for c in parts)
    if any(c.idle_j is None for c in parts):
        return gross, None
    return gross, gross - math.fsum(c.idle_j for c in parts)


def _sum_known(values: Sequence[float | None]) -> float | None:
    return None if not values or any(v is None for v in values) else math.fsum(values)


def _label_columns(labels: Mapping[str, Any]) -> dict[str, Any]:
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


def row_of(sidecar: Sidecar, path: str) -> dict[str, Any]:
    """The ledger row of a validated sidecar (``status`` ok, ``current`` False)."""
    row: dict[str, Any] = dict.fromkeys(name for name, _ in COLUMNS)
    row |= _label_columns(sidecar.labels)
    if row["seed"] is None and sidecar.seed is not None:
        row["seed"] = sidecar.seed
    if sidecar.stage == "student_training" and row["run"] is None:
        row["run"] = sidecar.version  # its version holds data set, pipeline, hyperparameters, student and seed
    energy, tokens = sidecar.energy, sidecar.tokens
    for kind in ("gpu", "cpu", "dram"):
        row[f"{kind}_j"], row[f"{kind}_net_j"] = _component_sums(energy.components, kind)
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
        "error_j": energy.error_j,
        "source": energy.source,
        "unknown_reason": energy.reason if energy.gross_j is None else None,
        "wall_s": _sum_known([a.wall_s for a in sidecar.attempts]),
        "attempts": len(sidecar.attempts),
        "j_per_token": sidecar.j_per_token.value,
        "j_per_token_divides_by": sidecar.j_per_token.divides_by,
        "co2e_g": sidecar.co2e.g,
        "pue": sidecar.co2e.pue,
        "intensity_g_per_kwh": sidecar.co2e.intensity_g_per_kwh,
        "grid_source": sidecar.co2e.source,
        "coverage": quality.coverage,
        "interval_s": quality.interval_reached_s,
        "largest_gap_s": quality.largest_gap_s,
        "flags": list(quality.flags),
        "host": sidecar.hardware.host,
        "hardware": _hardware(sidecar),
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


def _check(sidecar: Sidecar, key: Key, origin: str) -> None:
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
    for name, value in sidecar.tokens.model_dump().items():
        if value is not None and value < 0:
            raise UserError(f"{origin}: tokens.{name} = {value}: a count is not negative")
    if sidecar.co2e.g is not None and sidecar.co2e.g < 0:
        raise UserError(f"{origin}: co2e.g = {sidecar.co2e.g}: grams are not negative")


def read_attempts(folder: Path) -> list[Attempt]:
    """The attempts journalled in ``attempts/<stage>/<name>/<version>/``."""
    from ..energy import attempts_of

    return list(attempts_of(folder))


def _orphans(root: Path, known: set[Key], labels: Mapping[str, Mapping]) -> Iterator[tuple[dict | None, Problem]]:
    """Rows of attempts that never led to an artifact: energy that was spent and wasted."""
    for key, folder in artifact_folders(root / "attempts"):
        if key in known:
            continue
        name = "/".join(key)
        try:
            attempts = read_attempts(folder)
        except UserError as error:
            yield None, Problem(str(folder), "rejected", str(error))
            continue
        except Exception as error:  # a damaged journal must not stop the answer; it is named instead
            yield None, Problem(str(folder), "rejected", f"{folder}: the attempts cannot be read ({error})")
            continue
        if not attempts:
            continue
        if all(a.outcome == "running" for a in attempts):
            yield None, Problem(str(folder), "running", f"{name}: an attempt is still running and is not counted yet")
            continue
        row = _orphan_row(key, attempts, str(folder), labels.get(name, {}))
        outcomes = ", ".join(sorted({a.outcome for a in attempts}))
        spent = "an unknown energy" if row["total_j"] is None else f"{row['total_j']:.0f} J"
        message = (
            f"{name}: {len(attempts)} attempt(s) ({outcomes}) spent {spent} without an artifact: counted as wasted"
        )
        yield row, Problem(str(folder), "orphan", message)


def _orphan_row(key: Key, attempts: list[Attempt], path: str, labels: Mapping[str, Any]) -> dict[str, Any]:
    totals = [total(a.components) for a in attempts]
    gross = _sum_known([t[0] for t in totals])
    row: dict[str, Any] = dict.fromkeys(name for name, _ in COLUMNS)
    row |= _label_columns(labels)
    row |= {
        "stage": key[0],
        "name": key[1],
        "version": key[2],
        "status": "orphan",
        "current": False,
        "consumes": [],
        "flags": ["orphan"],
        "total_j": gross,
        "wasted_j": gross,
        "source": "unavailable" if gross is None else _weakest([t[2] for t in totals]),
        "unknown_reason": next((t[3] for t in totals if t[0] is None), None) if gross is None else None,
        "wall_s": _sum_known([a.wall_s for a in attempts]),
        "attempts": len(attempts),
        "host": attempts[-1].host,
        "started_utc": attempts[0].start_utc,
        "path": path,
    }
    for kind in ("gpu", "cpu", "dram"):
        row[f"{kind}_j"] = _sum_known([_component_sums(a.components, kind)[0] for a in attempts])
    return row


def _weakest(sources: Sequence[str]) -> str:
    return "estimated" if "estimated" in sources else "measured"


def _same_record(one: dict, other: dict) -> bool:
    return all(one[k] == other[k] for k in ("total_j", "started_utc", "created_utc", "attempts", "host"))


def collect_rows(
    roots: Sequence[Path], plan_labels: Mapping[str, Mapping] | None = None
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Rows and problems of every sidecar and orphaned attempt under ``roots``."""
    rows: dict[Key, dict[str, Any]] = {}
    extra: list[dict[str, Any]] = []
    problems: list[Problem] = []
    rejected: set[Key] = set()
    seen_roots: set[str] = set()
    folders = []
    for root in map(Path, roots):
        if (real := os.path.realpath(root)) not in seen_roots:
            seen_roots.add(real)
            folders.append(root)
    for root in folders:
        for key, folder in artifact_folders(root):
            path = f"{folder}/{SIDECAR_NAME}"
            try:
                with open(path, encoding="utf-8") as handle:
                    text = handle.read()
            except FileNotFoundError:
                continue  # not finished: its attempts are looked at below
            except (OSError, UnicodeDecodeError) as error:
                problems.append(Problem(path, "rejected", f"{path}: cannot be read ({error})"))
                rejected.add(key)
                continue
            try:
                sidecar = parse(text, path)
                _check(sidecar, key, path)
                row = row_of(sidecar, str(folder))
            except (UserError, ValueError, TypeError) as error:
                problems.append(Problem(path, "rejected", str(error)))
                rejected.add(key)
                continue
            if (first := rows.get(key)) is None:
                rows[key] = row
                continue
            same = _same_record(first, row)
            what = "the same record as" if same else "another execution of the artifact of"
            spent = "" if same else f"; its {_joules(row['total_j'])} are outside every figure"
            problems.append(
                Problem(path, "duplicate", f"{path}: {what} {first['path']}; only the first is used{spent}")
            )
            row["status"] = "duplicate"
            row["flags"] = [*row["flags"], "duplicate"]
            extra.append(row)
    for root in folders:
        for row, problem in _orphans(root, set(rows) | rejected, plan_labels or {}):
            problems.append(problem)
            if row is not None:
                extra.append(row)
    problems += _link(rows)
    elsewhere, unreadable = registered(folders, rows)
    return [*rows.values(), *extra, *elsewhere], problems + unreadable


def registered(
    folders: Sequence[Path], rows: Mapping[Key, Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Runs of other workflows that registered with a teacher store as consumers, and copies that cannot be read.

    Their energy belongs to their own workflow's ledger; here they only count as reuse. A copy of a run that ``rows``
    holds itself is left out.
    """
    found: dict[tuple, dict[str, Any]] = {}
    problems = []
    for folder in folders:
        for path in consumers(folder):
            try:
                sidecar = read(path)
            except UserError as error:
                problems.append(Problem(str(path), "rejected", str(error)))
                continue
            row = row_of(sidecar, str(path))
            own = rows.get(key_of(row))
            if own is not None and own["started_utc"] == row["started_utc"]:
                continue
            attempt = sidecar.attempts[0].id
            row |= {"status": "elsewhere", "flags": ["elsewhere"], "run": f"{row['run']}@{attempt}"}
            found[(*key_of(row), attempt)] = row
    return list(found.values()), problems


def _joules(value: float | None) -> str:
    return "unknown joules" if value is None else f"{value:.0f} J"


def _link(rows: dict[Key, dict[str, Any]]) -> list[Problem]:
    """Flag rows whose consumed artifacts have no accepted sidecar, and rows without an energy."""
    problems = []
    for row in rows.values():
        missing = [c for c in row["consumes"] if tuple(c.split("/")) not in rows]
        if missing:
            row["status"] = "consumes_missing"
            row["flags"] = [*row["flags"], "consumes_missing"]
            message = f"{row['path']}: consumed {', '.join(missing)}, which has no sidecar: it enters no figure"
            problems.append(Problem(row["path"], "consumes_missing", message))
        if row["total_j"] is None:
            reason = row["unknown_reason"] or "no reason given"
            message = f"{row['path']}: the energy is unknown ({reason})"
            problems.append(Problem(row["path"], "unknown_energy", message))
    return problems


def mark_current(rows: list[dict[str, Any]], current: Sequence[Sequence[str]] | None) -> list[Problem]:
    """Set ``current``: those listed, or without a list the newest evaluation of each run and every other row.

    Returns a problem for each listed artifact that has no row.
    """
    if current is not None:
        wanted = {tuple(item) for item in current}
        for row in rows:
            row["current"] = row["status"] not in OUTSIDE and (row["stage"], row["name"], row["version"]) in wanted
        present = {(r["stage"], r["name"], r["version"]) for r in rows if r["current"] and r["status"] != "orphan"}
        return [
            Problem("/".join(key), "missing", f"{'/'.join(key)}: planned, but it has no accepted sidecar")
            for key in sorted(wanted - present)
        ]
    newest: dict[tuple, str] = {}

    def identity(row: dict) -> tuple | None:
        if row["stage"] == "evaluation":
            return ("evaluation", row["run"] or row["name"], row["suite"])
        return None

    for row in rows:
        if row["status"] not in ("orphan", *OUTSIDE) and (key := identity(row)):
            newest[key] = max(newest.get(key, ""), row["created_utc"] or "")
    for row in rows:
        key = identity(row)
        latest = key is None or row["status"] == "orphan" or row["created_utc"] == newest[key]
        row["current"] = row["status"] not in OUTSIDE and latest
    return []


def collect(
    roots: Sequence[Path],
    plan_labels: Mapping[str, Mapping] | None = None,
    current: Sequence[Sequence[str]] | None = None,
):
    """The ledger as a pandas DataFrame with the columns of ``COLUMNS``, and the list of :class:`Problem`.

    ``roots``: result folders, the teacher store among them. ``plan_labels``: "stage/name/version" → labels, for
    attempts
    that never wrote a sidecar. ``current``: (stage, name, version) of the configuration at hand.
    """
    rows, problems = collect_rows(roots, plan_labels)
    problems += mark_current(rows, current)
    return frame(rows), problems


def frame(rows: list[dict[str, Any]]):
    """Rows as a pandas DataFrame with Arrow-backed types (so that an integer stays one beside nulls)."""
    import pandas as pd
    import pyarrow as pa

    return pa.Table.from_pylist(rows, schema=schema()).to_pandas(types_mapper=pd.ArrowDtype)


def records(ledger) -> list[dict[str, Any]]:
    """Rows of a ledger frame as plain dicts (null as None)."""
    import pyarrow as pa

    return pa.Table.from_pandas(ledger, schema=schema(), preserve_index=False).to_pylist()


def provenance(rows: Sequence[Mapping[str, Any]]) -> Provenance:
    """Provenance of the accepted rows; reuse counts over every training row, current or not."""
    accepted = [r for r in rows if r["status"] in ("ok", "consumes_missing")]
    edges = {key_of(r): [tuple(c.split("/")) for c in r["consumes"]] for r in accepted}
    runs = {key_of(r): r["run"] or "/".join(key_of(r)) for r in accepted if r["stage"] == "student_training"}
    for row in rows:
        if row["status"] == "elsewhere":  # another workflow may have trained the very same run: a key of its own
            key = (row["stage"], row["name"], row["run"])
            edges[key] = [tuple(c.split("/")) for c in row["consumes"]]
            runs[key] = row["run"]
    return Provenance(edges, runs)


def key_of(row: Mapping[str, Any]) -> Key:
    return row["stage"], row["name"], row["version"]


def problem_rows(problems: Sequence[Problem]) -> list[dict[str, str]]:
    """Problems as plain dicts."""
    return [asdict(p) for p in problems]
