"""Heat maps of a sweep: quality and training energy over two hyperparameters (such as α × T)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from ...answer.labels import pipeline_name
from .. import style

MOST_MAPS = 12
NAMES = {"alpha": "α", "temperature": "T", "max_new_tokens": "new tokens at most"}


def draw(summary: Sequence[Mapping[str, Any]], pdf: str | Path, png: str | Path) -> None:
    """Write the heat maps: a row of two panels (Q, training energy) for each swept pipeline and student."""
    sweeps = find_sweeps(summary)
    if not sweeps:
        style.nothing("No pipeline was swept: each has one setting for each student.", pdf, png)
        return
    plt = style.pyplot()
    left = len(sweeps) - MOST_MAPS
    sweeps = sweeps[:MOST_MAPS]
    heights = [0.95 + 0.36 * len(s["rows"]) for s in sweeps]
    figure, grid = plt.subplots(
        len(sweeps), 2, figsize=(style.WIDTH, sum(heights) + 0.2), squeeze=False, height_ratios=heights
    )
    factor, unit = style.energy_unit([m["e_student_kwh"] for s in sweeps for m in s["members"]])
    for index, sweep in enumerate(sweeps):
        for side, (key, scale, name, format_) in enumerate(
            (("q", 1.0, "quality Q", "{:.3f}"), ("e_student_kwh", factor, f"training energy ({unit})", "{:#.3g}"))
        ):
            axes = grid[index][side]
            _heat(axes, sweep, key, scale, format_)
            axes.set_title(f"{sweep['title']}: {name}")
            axes.set_xlabel(NAMES.get(sweep["x"], sweep["x"]) if sweep["x"] else "")
            axes.set_ylabel(NAMES.get(sweep["y"], sweep["y"]) if sweep["y"] else "")
    figure.tight_layout(h_pad=1.2, w_pad=1.6)
    more = f" {left} further sweeps are in the tables." if left > 0 else ""
    style.footnote(figure, f"Means over seeds. Frame: the best cell of its map. Hatched: no value.{more}")
    style.save(figure, pdf, png)


def find_sweeps(summary: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Families of groups that differ in one or two hyperparameters: title, x and y keys, their values, and members.

    With three or more that vary, the two with most values span the map and the best Q of the others is shown.
    """
    families: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in summary:
        families.setdefault((row["teacher"], row["dataset"], row["pipeline"], row["student"]), []).append(row)
    many = len({f[1] for f in families}) > 1
    found = []
    for (_, dataset, pipeline, student), members in families.items():
        settings = [json.loads(m["hyperparameters"] or "{}") for m in members]
        values = {k: sorted({_scalar(s.get(k)) for s in settings}, key=_order) for s in settings for k in s}
        varied = sorted((k for k, v in values.items() if len(v) > 1), key=lambda k: (-len(values[k]), k))
        if not varied:
            continue
        x, y = ([*sorted(varied[:2]), None])[:2]
        y, x = (x, y) if y is not None else (None, x)
        found.append(
            {
                "title": f"{pipeline_name(pipeline)} {student}" + (f" · {dataset}" if many else ""),
                "x": x,
                "y": y,
                "columns": values[x],
                "rows": values[y] if y else [None],
                "members": members,
                "cells": [(_scalar(s.get(x)), _scalar(s.get(y)) if y else None) for s in settings],
            }
        )
    return found


def _scalar(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else json.dumps(value)


def _order(value: Any) -> tuple:
    return (value is None, isinstance(value, str), value if isinstance(value, int | float) else 0, str(value))


def _heat(axes, sweep, key: str, scale: float, format_: str) -> None:
    table = np.full((len(sweep["rows"]), len(sweep["columns"])), np.nan)
    for (x, y), member in zip(sweep["cells"], sweep["members"], strict=True):
        if member[key] is None:
            continue
        at = sweep["rows"].index(y), sweep["columns"].index(x)
        value = member[key] * scale
        better = np.nanmax if key == "q" else np.nanmin
        table[at] = value if np.isnan(table[at]) else better([table[at], value])
    axes.set_facecolor("white")
    colours = "cividis" if key == "q" else "cividis_r"
    known = table[~np.isnan(table)]
    if len(known):
        axes.imshow(table, cmap=colours, aspect="auto", origin="lower")
    low, high = (known.min(), known.max()) if len(known) else (0, 1)
    best = None if not len(known) else (known.max() if key == "q" else known.min())
    for (i, j), value in np.ndenumerate(table):
        if np.isnan(value):
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="////", ec="#999999", lw=0))
            continue
        share = (value - low) / (high - low) if high > low else 0.5
        bright = share > 0.55 if key == "q" else share < 0.45
        axes.text(
            j, i, format_.format(value), ha="center", va="center", fontsize=8, color="black" if bright else "white"
        )
        if value == best:
            axes.add_patch(Rectangle((j - 0.47, i - 0.44), 0.94, 0.88, fill=False, ec="#D55E00", lw=1.8))
    axes.set_xticks(range(len(sweep["columns"])), [f"{v}" for v in sweep["columns"]])
    axes.set_yticks(range(len(sweep["rows"])), ["" if v is None else f"{v}" for v in sweep["rows"]])
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)
