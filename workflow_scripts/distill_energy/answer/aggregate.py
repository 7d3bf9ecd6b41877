"""What the ``aggregate`` rule calls: sidecars in, ledger and summary out."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from ..ledger.carbon import apply_grid
from ..ledger.ledger import collect_rows, mark_current, problem_rows
from ..ledger.rows import Problem, schema
from ..store import bounded
from ..store.atomic import replacing, write_parquet
from ..store.remote import is_remote, synced
from .experiments import listed_elsewhere, mark_elsewhere, results_of
from .options import Options
from .summary import Study, study, summary_of

#: Metadata keys of the Parquet files.
PROBLEMS_KEY = b"distill_energy.problems"
OPTIONS_KEY = b"distill_energy.options"
#: ``where_it_went.parquet``.
PLACES_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("stage", "name", "version", "place", "phase", "run")] + [("joules", pa.float64())]
)


def load_current(current: str | Path | Sequence[Sequence[str]] | None) -> list[tuple[str, str, str]] | None:
    """The artifacts of the configuration at hand: a list, or a JSON file of [[stage, name, version], …], or None."""
    if current is None:
        return None
    if isinstance(current, str | Path):
        try:
            current = json.loads(Path(current).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(f"{current}: cannot be read as a JSON list of [stage, name, version] ({error})") from None
    try:
        return [(str(stage), str(name), str(version)) for stage, name, version in current]
    except (TypeError, ValueError):
        raise UserError("current: expected [[stage, name, version], …]") from None


def summary_table(summary: Sequence[Mapping[str, Any]], options: Options | None = None):
    """The summary rows as an Arrow table whose columns have the same types whatever is null."""
    texts = {"q_by_benchmark", "t_star_reference", "source", "label", "group", "baseline_group", "teacher", "dataset"}
    texts |= {"pipeline", "hyperparameters", "student", "interval_reason", "equal_quality_metric", "execution"}
    texts |= {"q_reference"}
    counts = {"seeds", "n_reuse", "n_kept", "n_kept_runs", "sweep_runs", "student_params", "t_star_batch_size"}
    counts |= {"seeds_to_decide"}

    def kind(name: str) -> pa.DataType:
        if name in texts or name.endswith(("_status", "_reason")):
            return pa.string()
        if name in counts:
            return pa.int64()
        if name in ("is_baseline", "is_kept") or name.startswith("on_front_"):
            return pa.bool_()
        if name == "seed_list":
            return pa.list_(pa.int64())
        if name in ("flags", "q_dropped") or name.startswith("dominated_by_"):
            return pa.list_(pa.string())
        return pa.float64()

    names = list(summary[0]) if summary else ["group", "label"]
    table = pa.Table.from_pylist(list(summary), schema=pa.schema([(name, kind(name)) for name in names]))
    if options is not None:
        text = json.dumps(options.__dict__, default=list)
        table = table.replace_schema_metadata({OPTIONS_KEY: text.encode()})
    return table


def write_ledger(
    path: str | Path,
    rows: Sequence[Mapping[str, Any]],
    problems: Sequence[Problem],
    options: Mapping[str, Any] | None = None,
) -> None:
    """Write the ledger. In the file's metadata travel the problems, for the page, and the ``options`` that the answer
    was computed with, so that another reader of the same folder gives the same answer."""
    table = pa.Table.from_pylist(list(rows), schema=schema())
    metadata = {PROBLEMS_KEY: json.dumps(problem_rows(problems)).encode()}
    if options is not None:
        metadata[OPTIONS_KEY] = json.dumps(options).encode()
    write_parquet(path, table.replace_schema_metadata(metadata))


def read_options(path: str | Path) -> dict[str, Any]:
    """``config`` (its accounting and evaluation), ``current``, ``labels``, ``roots`` and ``others`` of the last
    aggregate; empty where there is none."""
    try:
        text = (pq.read_schema(path).metadata or {}).get(OPTIONS_KEY, b"{}")
        return json.loads(text)
    except (OSError, pa.ArrowException, ValueError):
        return {}


def reopened(folders: Sequence[Path], every: bool = False) -> tuple[list[Path], dict[str, Any]]:
    """(roots, keyword arguments) with which ``judge`` gives the answer that lies in the first of ``folders`` again:
    those of its last aggregate, or none with ``every``. An experiment's folder stands for its results folder too."""
    used = {} if every else read_options(folders[0] / "ledger.parquet")
    own = [root for folder in folders for root in dict.fromkeys([results_of(folder), folder])]
    roots = [*own, *(Path(r) for r in used.get("roots", ()) if Path(r).is_dir() and Path(r) not in own)]
    given = {key: used.get(key) for key in ("current", "config")}
    return roots, {**given, "plan_labels": used.get("labels"), "others": used.get("others", ())}


def read_ledger(path: str | Path) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Rows and problems of a written ledger."""
    bounded.check(path)
    table = pq.read_table(path)
    text = (table.schema.metadata or {}).get(PROBLEMS_KEY, b"[]")
    return table.to_pylist(), [Problem(**p) for p in json.loads(text)]


def read_summary(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a written summary."""
    bounded.check(path)
    return pq.read_table(path).to_pylist()


def write_summary_csv(path: str | Path, summary: Sequence[Mapping[str, Any]]) -> None:
    """The summary as CSV."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        print_summary_csv(handle, summary)


def print_summary_csv(handle: TextIO, summary: Sequence[Mapping[str, Any]]) -> None:
    """The summary as CSV; lists are joined by ``; ``, null is empty."""
    writer = csv.DictWriter(handle, list(summary[0]) if summary else ["group", "label"])
    writer.writeheader()
    for row in summary:
        writer.writerow({k: "; ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()})


def answer(
    roots: Sequence[str | Path],
    *,
    current: str | Path | Sequence[Sequence[str]] | None = None,
    config: Mapping[str, Any] | None = None,
    plan_labels: Mapping[str, Mapping[str, Any]] | None = None,
    others: Sequence[Sequence[str]] = (),
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Problem]]:
    """(ledger rows, summary rows, problems) of the sidecars under ``roots``, nothing written."""
    found, problems = judge(roots, current=current, config=config, plan_labels=plan_labels, others=others)
    return list(found.rows), summary_of(found), problems


def judge(
    roots: Sequence[str | Path],
    *,
    current: str | Path | Sequence[Sequence[str]] | None = None,
    config: Mapping[str, Any] | None = None,
    plan_labels: Mapping[str, Mapping[str, Any]] | None = None,
    others: Sequence[Sequence[str]] = (),
    ask: bool = False,
) -> tuple[Study, list[Problem]]:
    """The study of the sidecars under ``roots`` and the problems found. ``others``: artifacts that other studies in the
    same folder list (see ``experiments``). ``ask``: hours of the grid that the first root lacks are asked for.
    """
    rows, problems = collect_rows([Path(r) for r in roots], plan_labels)
    listed = load_current(current)
    if listed is not None:
        mark_elsewhere(rows, others, listed)
    problems += mark_current(rows, listed)
    apply_grid(rows, (config or {}).get("energy"), Path(roots[0]) / "grid", ask)
    return study(rows, Options.from_config(config)), problems


def main(
    results_root: str | Path,
    out: Mapping[str, str | Path],
    current: str | Path | Sequence[Sequence[str]] | None,
    config: Mapping[str, Any] | None,
    roots: Sequence[str | Path] = (),
    plan_labels: Mapping[str, Mapping[str, Any]] | None = None,
    log=print,
) -> None:
    """Write ``out["ledger"]``, ``out["summary"]``, ``out["csv"]`` and, if asked for, ``out["places"]``.

    From the sidecars under ``results_root``, the answer's own folder and ``roots`` (such as a teacher store; of a URL
    its mirror, brought up to date). ``config`` is the validated configuration as a plain mapping.
    """
    roots = [synced(root, results_root) if is_remote(str(root)) else root for root in roots]
    own = Path(out["ledger"]).parent  # its warm processes were measured there
    others = listed_elsewhere(own, lambda folder: read_options(folder / "ledger.parquet"))
    found, problems = judge(
        [results_root, own, *roots], current=current, config=config, plan_labels=plan_labels, others=others, ask=True
    )
    rows, summary = list(found.rows), summary_of(found)
    for problem in problems:
        log(f"{problem.kind}: {problem.message}")
    used = {key: (config or {}).get(key) for key in ("accounting", "evaluation", "energy")}
    options = {"config": used, "current": load_current(current), "labels": plan_labels, "others": others}
    options["roots"] = list(map(str, roots))
    write_ledger(out["ledger"], rows, problems, options)
    if "places" in out:
        write_parquet(out["places"], pa.Table.from_pylist(found.places, schema=PLACES_SCHEMA))
    write_parquet(out["summary"], summary_table(summary, Options.from_config(config)))
    write_summary_csv(out["csv"], summary)
    log(f"{len(rows)} executions, {len(summary)} summary rows, {len(problems)} problems")
