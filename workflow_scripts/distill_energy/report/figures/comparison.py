"""The replayed published table: what is published and what this accounting gives, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...answer.labels import pipeline_name
from ...published.replay import verdict
from .. import style

COLUMNS = ("Quantity", "Published", "Ours", "")
PLACES = (0.0, 0.48, 0.86, 0.9)  # of the axes' width; the third is the right end of its numbers
MARKS = {True: "agrees", False: "differs", None: "no value"}


def draw(comparison: Sequence[Mapping[str, Any]], pdf: str | Path, png: str | Path) -> None:
    """Write the comparison: a line for each published value. ``comparison``: rows of ``published.replay.compare``."""
    if not comparison:
        style.nothing("The table holds no published value.", pdf, png)
        return
    plt = style.pyplot()
    high = len(comparison) + 1
    figure, axes = plt.subplots(figsize=(style.WIDTH, 0.27 * high + 0.35))
    axes.set_xlim(0, 1)
    axes.set_ylim(high, 0)
    axes.axis("off")
    axes.set_title(verdict(comparison).replace("; ", ";\n"))
    for index, row in enumerate([None, *comparison]):
        cells = COLUMNS if row is None else _cells(row)
        for place, text, side in zip(PLACES, cells, ("left", "left", "right", "left"), strict=True):
            wrong = row is not None and row["agrees"] is False
            weight = "bold" if row is None or wrong else "normal"
            colour = "#A8320A" if wrong else "#222222"
            axes.text(place, index + 0.5, text, ha=side, va="center", fontsize=8, fontweight=weight, color=colour)
        axes.axhline(index + 1, color="#222222" if row is None else "#dddddd", lw=0.8 if row is None else 0.5)
    if not all(row["independent"] for row in comparison):
        said = "* not independent: the published value handed on, or implied by others in this table"
        axes.text(0, high + 0.5, said, ha="left", va="center", fontsize=7, color="#444444")
    style.save(figure, pdf, png)


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    name = row["quantity"]
    if ":" in name:  # a ratio names both
        name = name.split(":")[0] + ", " + " / ".join(_named(part) for part in name.split(": ")[1].split(" / "))
    else:
        name += f", {pipeline_name(row['pipeline'])} {row['student']}"
    ours = "–" if row["ours"] is None else f"{row['ours']:.2f}"
    mark = MARKS[row["agrees"]] + ("" if row["independent"] else "*")
    return name, row["published"], ours, mark


def _named(text: str) -> str:
    pipeline, _, student = text.partition(" ")
    return f"{pipeline_name(pipeline)} {student}"
