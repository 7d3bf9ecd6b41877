"""The published stage table through the same code path: table → sidecars → ledger → summary → figures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..answer.aggregate import answer
from ..answer.breakeven import JOULES_PER_KWH, whole_reuses
from ..answer.summary import finish
from ..errors import UserError
from ..ledger.build import make_sidecar, write_scores, write_sidecar
from ..ledger.graph import Key
from ..ledger.rows import canonical
from ..store.sidecar import Component, Hardware

SUITE = "published"
BENCHMARK = "the published Q"
TEACHER_STAGE = {"kd": "teacher_logits", "synthetic": "teacher_generation"}


def read_table(path: str | Path) -> dict[str, Any]:
    """The YAML table. Raises UserError naming the file and what it lacks."""
    path = Path(path)
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    for key in ("teacher", "dataset", "preprocess_kwh", "runs"):
        if not isinstance(table, dict) or key not in table:
            raise UserError(f"{path}: the key {key!r} is missing")
    for index, run in enumerate(table["runs"]):
        for key in ("pipeline", "student", "student_kwh", "evaluation_kwh"):
            if key not in run:
                raise UserError(f"{path}: runs[{index}].{key} is missing")
        if run["pipeline"] != table.get("baseline", "sft") and "teacher_kwh" not in run:
            raise UserError(f"{path}: runs[{index}].teacher_kwh is missing")
    return table


def _version(*parts: Any) -> str:
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:12]


def _whole(kwh: float) -> list[Component]:
    return [Component(component="gpu", source="measured", method="published", gross_j=kwh * JOULES_PER_KWH)]


def write_artifacts(table: Mapping[str, Any], root: str | Path) -> None:
    """Write a sidecar for every stage of the table, and an evaluation artifact with the published Q, under ``root``."""
    root, teacher, dataset = Path(root), str(table["teacher"]), str(table["dataset"])
    hardware = Hardware(host="published", cpu=None)

    def stage(key: Key, kwh: float, labels: Mapping[str, Any], consumes: Sequence[Key] = ()) -> Path:
        return write_sidecar(root, make_sidecar(key, _whole(kwh), labels=labels, consumes=consumes, hardware=hardware))

    data: Key = ("preprocess", f"data-{dataset}", _version("data", dataset, table["preprocess_kwh"]))
    stage(data, table["preprocess_kwh"], {"dataset": dataset})
    reference: Key = ("evaluation", f"{SUITE}-{teacher}", _version("teacher", teacher))
    sidecar = make_sidecar(
        reference,
        [Component(component="gpu", source="unavailable", reason="the teacher's evaluation is not published")],
        labels={"role": "teacher", "teacher": teacher, "dataset": dataset, "suite": SUITE},
        hardware=hardware,
    )
    write_scores(write_sidecar(root, sidecar), [{"benchmark": BENCHMARK, "score": 1.0}])
    groups = {
        (r["pipeline"], r["student"]): _version("group", dataset, r["pipeline"], r["student"]) for r in table["runs"]
    }
    for run in table["runs"]:
        pipeline, student = run["pipeline"], str(run["student"])
        consumed = [data]
        if "teacher_kwh" in run:
            made = TEACHER_STAGE.get(pipeline, "teacher_logits")
            artifact: Key = (made, f"{teacher}-{dataset}", _version(made, teacher, dataset, run["teacher_kwh"]))
            stage(artifact, run["teacher_kwh"], {"teacher": teacher, "dataset": dataset}, [data])
            consumed.append(artifact)
        group = groups[run["pipeline"], run["student"]]
        labels = {
            "teacher": teacher,
            "dataset": dataset,
            "pipeline": pipeline,
            "student": student,
            "hyperparameters": {},
            "run": _version("run", group),
            "group": group,
            "role": "student",
            "baseline_group": groups.get((table.get("baseline", "sft"), run["student"])),
            "student_params": run.get("student_params"),
        }
        training: Key = ("student_training", f"{dataset}-{pipeline}-{student}", _version("training", group))
        stage(training, run["student_kwh"], labels, consumed)
        evaluation: Key = ("evaluation", f"{SUITE}-{dataset}-{pipeline}-{student}", _version("evaluation", group))
        folder = stage(evaluation, run["evaluation_kwh"], labels | {"suite": SUITE}, [training])
        if run.get("q") is not None:  # else the artifact lacks the benchmark, and Q is null for that reason
            write_scores(folder, [{"benchmark": BENCHMARK, "score": run["q"]}])


def totals_only(table: Mapping[str, Any], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Summary rows of points published as a total only: on the Pareto plot, in no stage and no N*."""
    rows = []
    for item in table.get("totals_only", []):
        row: dict[str, Any] = dict.fromkeys(columns)
        row |= {
            "group": _version("total", item["pipeline"], item["student"]),
            "teacher": str(table["teacher"]),
            "q_reference": str(table["teacher"]),
            "dataset": str(table["dataset"]),
            "pipeline": item["pipeline"],
            "student": str(item["student"]),
            "hyperparameters": "{}",
            "is_baseline": item["pipeline"] == table.get("baseline", "sft"),
            "seeds": 1,
            "seed_list": [],
            "flags": ["totals_only"],
            "q": item.get("q"),
            "q_dropped": [],
            "q_by_benchmark": "{}",
            "source": "measured",
            "e_reason": "published as a total only",
            "interval_reason": "one seed gives no interval",
            "n_star_status": "unknown",
            "n_star_reason": "the baseline",
            "t_star_status": "unknown",
            "n_star_equal_quality_status": "unknown",
        }
        for view in ("oneoff", "amortised", "marginal"):  # a baseline has no teacher: the three views agree
            row[f"e_{view}_kwh"] = item["total_kwh"]
        rows.append(row)
    return rows


def replay(table_path: str | Path, work: str | Path) -> tuple[list[dict], list[dict], list[dict[str, Any]]]:
    """(ledger rows, summary rows, comparison rows) of the published table, by way of sidecars written under
    ``work``."""
    table = read_table(table_path)
    write_artifacts(table, work)
    config = {"accounting": {"baseline": table.get("baseline", "sft")}}
    rows, summary, _ = answer([work], config=config)
    summary += totals_only(table, list(summary[0]))
    finish(summary)
    return rows, summary, compare(table, summary)


def compare(table: Mapping[str, Any], summary: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ours beside theirs: rows of quantity, pipeline, student, published, ours, agrees, independent, note.

    A value agrees where ours, unrounded, lies in the published range, or within half a unit of the last digit that a
    single value is printed with. A comparison is independent where ours is neither the published value handed on, nor
    implied by other values that are compared here.
    """
    by_key = {(r["pipeline"], r["student"]): r for r in summary}
    published = table.get("published", {})
    given = {(item["pipeline"], str(item["student"])) for item in table.get("totals_only", [])}
    totals = {(item["pipeline"], str(item["student"])) for item in published.get("totals_kwh", [])}
    rows = []

    def add(quantity: str, key: tuple[str, str], theirs: str, ours: float | None, low: float, high: float, **more):
        row = {"quantity": quantity, "pipeline": key[0], "student": key[1], "published": theirs, "ours": ours}
        row["agrees"] = None if ours is None else low - 1e-9 <= ours <= high + 1e-9
        rows.append(row | {"independent": True, "note": ""} | more)

    for item in published.get("totals_kwh", []):
        key = (item["pipeline"], str(item["student"]))
        ours, value = by_key.get(key, {}).get("e_oneoff_kwh"), item["value"]
        more = {"independent": False, "note": "the published total handed on"} if key in given else {}
        add("E one-off (kWh)", key, f"{value:.2f}", ours, value - 0.005, value + 0.005, **more)
    for item in published.get("n_star", []):
        key = (item["pipeline"], str(item["student"]))
        ours, low, high = by_key.get(key, {}).get("n_star"), item["low"], item["high"]
        if low == high:  # "about 10"
            low, high = low - 0.5, high + 0.5
        more = {}
        if ours is not None and not low <= ours <= high and item["low"] <= whole_reuses(ours) <= item["high"]:
            more["note"] = f"within the range only as whole reuses: it has paid at the {whole_reuses(ours)}th"
        add("N* (reuses)", key, item["text"], ours, low, high, **more)
    for item in published.get("ratios", []):
        keys = [(p, str(s)) for p, s in (item["of"], item["to"])]
        pair = [by_key.get(key, {}).get("e_oneoff_kwh") for key in keys]
        ours, value = None if None in pair else pair[0] / pair[1], item["value"]
        implied = set(keys) <= totals
        more = {"independent": False, "note": "implied by two totals above"} if implied else {}
        quantity = f"E one-off: {' / '.join(' '.join(key) for key in keys)}"
        add(quantity, keys[0], str(value), ours, value - 0.05, value + 0.05, **more)
    return rows


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many comparisons agree, and how many of them say something of their own."""
    agree = [row for row in rows if row["agrees"]]
    apart = sum(row["independent"] for row in rows)
    own = sum(row["independent"] for row in agree)
    return (
        f"{len(agree)} of {len(rows)} published values agree; {apart} comparisons are independent, {own} of them agree"
    )
