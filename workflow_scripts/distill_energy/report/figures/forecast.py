"""The forecast by stage, measurement beside it, and the reuse count at which each pipeline would break even."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter

from ...answer.labels import pipeline_name
from .. import style

MOST_ROWS = 30


def draw(result: Any, pdf: str | Path, png: str | Path) -> None:
    """Write the forecast figure from an ``accounting.forecast.Forecast``."""
    if not result.stages:
        reasons = "; ".join(result.unknown[:3]) or "the plan is empty"
        style.nothing(f"Nothing can be forecast: {reasons}", pdf, png)
        return
    plt = style.pyplot()
    stars = result.break_even[:MOST_ROWS]
    heights = [0.9 + 0.3 * len(result.stages)] + ([0.95 + 0.25 * len(stars)] if stars else [])
    figure, grid = plt.subplots(
        len(heights), 1, figsize=(style.WIDTH, sum(heights)), height_ratios=heights, squeeze=False
    )
    _stages(grid[0][0], result.stages)
    if stars:
        _stars(grid[1][0], stars)
    figure.tight_layout(h_pad=1.2)
    notes = [f"Basis: {result.basis}. Bars: 90 % of the draws."]
    if stars:
        notes.append("Saving in training energy by: " + "; ".join(sorted({s["saving"] for s in stars})) + ".")
    if len(result.break_even) > MOST_ROWS:
        notes.append(f"The first {MOST_ROWS} of {len(result.break_even)} break-even rows.")
    if result.unknown:
        notes.append(f"Not forecast: {len(result.unknown)} executions ({result.unknown[0]}).")
    style.footnote(figure, " ".join(notes))
    style.save(figure, pdf, png)


def _stages(axes, stages: Sequence[Mapping[str, Any]]) -> None:
    factor, unit = style.energy_unit([s["likely_kwh"] for s in stages])
    measured = False
    for index, row in enumerate(stages):
        low, mid, high = (row[f"{end}_kwh"] * factor for end in ("low", "likely", "high"))
        colour = style.STAGE_COLOURS.get(row["stage"], "#222222")
        axes.plot([low, high], [index, index], color=colour, lw=5, alpha=0.35, solid_capstyle="butt", zorder=2)
        axes.plot(mid, index, "|", color=colour, ms=12, mew=2.2, zorder=3)
        if row["measured_kwh"] is not None:
            measured = True
            axes.plot(row["measured_kwh"] * factor, index, "D", color="black", ms=5, mec="white", zorder=4)
        text = (
            f"{style.number(mid)} ({style.number(low, 2)} to {style.number(high, 2)}), {_time(row['likely_seconds'])}"
        )
        axes.annotate(text, (1.01, index), xycoords=("axes fraction", "data"), va="center", fontsize=7.2)
    axes.set_yticks(range(len(stages)), [f"{s['stage'].replace('_', ' ')} ({s['executions']} ×)" for s in stages])
    axes.set_ylim(len(stages) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.set_xlabel(f"Energy ({unit})")
    axes.set_title("Forecast by stage" + (", and what was measured (diamonds)" if measured else ""))
    axes.grid(axis="x", color="#e8e8e8", lw=0.5)
    axes.tick_params(axis="y", length=0)


def _time(seconds: float | None) -> str:
    if seconds is None or seconds != seconds:
        return "time unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"


def _stars(axes, stars: Sequence[Mapping[str, Any]]) -> None:
    every = [s["pipeline"] for s in stars]
    many = len({s["dataset"] for s in stars}) > 1
    finite = [s["n_star_high"] or s["n_star"] or s["n_star_low"] for s in stars]
    top = max([f for f in finite if f is not None] + [s["planned_n"] for s in stars] + [10]) * 1.5
    for index, row in enumerate(stars):
        colour, marker = style.pipeline_style(row["pipeline"], every)
        if row["n_star_low"] is not None:
            end = row["n_star_high"] or top
            axes.plot([row["n_star_low"], end], [index, index], color=colour, lw=4, alpha=0.35, solid_capstyle="butt")
        if row["n_star"] is not None:
            axes.plot(row["n_star"], index, "x", color=colour, ms=7, mew=2)
        axes.plot(row["planned_n"], index, marker, color=colour, ms=6, mec="white", zorder=4)
        text = "never" if row["n_star"] is None else f"N* ≈ {style.number(row['n_star'], 2)}"
        axes.annotate(
            f"{text}, planned N = {row['planned_n']}",
            (1.01, index),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=7.2,
        )
    labels = [f"{pipeline_name(s['pipeline'])} {s['student']}" + (f" · {s['dataset']}" if many else "") for s in stars]
    axes.set_yticks(range(len(stars)), labels)
    axes.set_ylim(len(stars) - 0.5, -0.5)
    axes.set_xscale("log")
    lows = [s["n_star_low"] for s in stars if s["n_star_low"]]
    axes.set_xlim(min([0.8, *(0.8 * low for low in lows)]), top)

    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.set_xlabel("Reuse count: break-even N* (crosses) and planned N (filled)")
    axes.set_title("Break-even, as forecast")
    axes.grid(axis="x", color="#e8e8e8", lw=0.5)
    axes.tick_params(axis="y", length=0)
