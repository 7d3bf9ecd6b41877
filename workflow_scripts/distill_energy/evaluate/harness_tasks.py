"""Any task of lm-evaluation-harness by its name, the user's own by their YAML: which there are, how samples score."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.names import meant
from ..errors import UserError
from .result import Item


def manager_of(task: str, include_path: str | None):
    """The harness's task manager that knows ``task``. Raises UserError if there is no such task, or no such folder.

    The harness's own thousands of tasks are indexed only where they are needed.
    """
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        folder = Path(include_path).expanduser()
        if not folder.is_dir():
            raise UserError(f"evaluation: include_path {folder} is not a folder of task YAMLs")
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if task in own.all_subtasks:  # a group may name the harness's tasks
            return own
        manager = TaskManager(include_path=str(folder))
    else:
        manager = TaskManager()
    if task not in manager.all_tasks:
        slip = meant(task, manager.all_tasks)
        raise UserError(f"evaluation: lm-eval has no task {task!r}{slip}; one of your own needs include_path")
    return manager


def choose(
    samples: Sequence[Mapping[str, Any]],
    better: Mapping[str, Mapping[str, bool]],
    metric: str | None,
    kept_filter: str | None,
) -> tuple[str, str]:
    """(metric, filter) by which samples are scored: those asked for, else the first filter and the first metric that
    every sample has as one number and that is better when higher.

    ``better``: task → metric → whether higher is better. Raises UserError naming what there is.
    """
    filters = list(dict.fromkeys(row["filter"] for row in samples))
    chosen = kept_filter or filters[0]
    if chosen not in filters:
        raise UserError(f"evaluation: filter {chosen!r} is none of the task's: {', '.join(filters)}")
    rows = [row for row in samples if row["filter"] == chosen]
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    usable = [
        name
        for name in names
        if all(_number(row.get(name)) is not None for row in rows)
        and not any(better.get(row["task"], {}).get(name) is False for row in rows)
    ]
    if metric is None and usable:
        return usable[0], chosen
    if metric not in usable:
        wanted = "no metric is given" if metric is None else f"metric {metric!r} is not among them"
        raise UserError(
            "evaluation: Q takes a metric that each item has as a number and that is better when higher: "
            f"{', '.join(usable) or 'none'} of the task's {', '.join(names)}; {wanted}"
        )
    return metric, chosen


def _number(value: Any) -> float | None:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return None


def read(
    samples: Sequence[Mapping[str, Any]], metric: str, kept_filter: str, text: Callable, length: Callable[[str], int]
) -> list[Item]:
    """One item a sample, in the order of tasks and rows. ``text``: a sample's prompt; ``length``: tokens of a text."""
    rows = [row for row in samples if row["filter"] == kept_filter]
    items = []
    for row in sorted(rows, key=lambda row: (row["task"], row["doc_id"])):
        options = _options(row)
        made = "" if options else str(row["resps"][0][0])
        tokens = options if options else length(made)
        extra = {"task": row["task"], metric: _number(row[metric])}
        items.append(
            Item(
                f"{row['task']}-{row['doc_id']}",
                text(row),
                _said(row["target"]),
                _said(row["filtered_resps"]),
                _number(row[metric]),
                tokens,
                extra,
            )
        )
    return items


def _options(row: Mapping[str, Any]) -> int:
    """Number of options whose likelihoods were asked; 0 for a generated answer."""
    first = row["resps"][0][0] if isinstance(row["resps"][0], list | tuple) else row["resps"][0]
    return 0 if isinstance(first, str) else len(row["resps"])


def _said(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else json.dumps(value, default=str)


def chance(samples: Sequence[Mapping[str, Any]], kept_filter: str) -> float:
    """What guessing scores: the mean of 1 in the number of options; 0 where answers are generated."""
    counts = [_options(row) for row in samples if row["filter"] == kept_filter]
    return math.fsum(1.0 / n if n > 1 else 0.0 for n in counts) / len(counts)
