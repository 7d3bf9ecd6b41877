"""Energy against quality, in four views: one-off, amortised at the real N, marginal, campaign."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D

from ...answer.labels import pipeline_name
from .. import style
from ..select import headline

MOST_FAMILIES = 6
MOST_LABELS = 24  # beyond this many, only points of the front are labelled, evenly chosen
MOST_BARS = 60  # beyond this many, only points of the front are drawn large and with bars

VIEWS = {
    "oneoff": "One-off: the teacher counted whole",
    "amortised": "Amortised: shared ÷ runs",
    "marginal": "Marginal: shared free",
    "campaign": "Campaign: all ÷ runs",
}

SHORT = {
    "oneoff": "One-off energy",
    "amortised": "Amortised energy",
    "marginal": "Marginal energy",
    "campaign": "Campaign energy",
}


def draw(summary: Sequence[Mapping[str, Any]], pdf: str | Path, png: str | Path) -> None:
    """Write the Pareto figure. Hollow markers are dominated; an energy whose Q is unknown stands at the lower edge, and
    points without energy are named below."""
    plt = style.pyplot()
    drawn = [r for r in summary if any(r[f"e_{v}_kwh"] is not None for v in VIEWS)]
    if not drawn:
        reasons = sorted({r["e_reason"] or "unknown" for r in summary}) or ["there is no run"]
        style.nothing(f"No point has an energy: {'; '.join(reasons)}", pdf, png)
        return
    families = list(dict.fromkeys((r["q_reference"], r["dataset"]) for r in drawn))
    if len(families) > 1 and len({f[0] for f in families}) == 1:
        titles = {f: str(f[1]) for f in families}
    else:
        titles = {f: f"{f[1]}, Q relative to {f[0]}" for f in families}
    figure, panels, place = _layout(plt, families[:MOST_FAMILIES])
    factor, unit = style.energy_unit([r[f"e_{v}_kwh"] for r in drawn for v in VIEWS])
    every = [r["pipeline"] for r in summary]
    placing = {}
    for (family, view), axes in panels.items():
        rows = [r for r in drawn if (r["q_reference"], r["dataset"]) == family]
        shown = {r["group"] for r in headline(rows)}
        shown = shown if len(shown) <= MOST_BARS else set()
        brief = len(families) > 1 or view != "oneoff"
        placing[axes] = _panel(axes, view, rows, shown, factor, every, brief)
        if len(families) == 1:
            axes.set_title(VIEWS[view])
        elif view == "oneoff":
            axes.set_title(titles[family])
        axes.set_xlabel(
            f"Energy per student ({unit})" if brief is False or len(families) == 1 else f"{SHORT[view]} ({unit})"
        )
        if view == "oneoff" or (len(families) == 1 and view == "amortised"):
            axes.set_ylabel("Quality Q (1 = the teacher)")
    edges = {}
    for (family, view), axes in panels.items():
        rows = [r for r in drawn if (r["q_reference"], r["dataset"]) == family and r["q"] is None]
        if rows and family not in edges:  # its views share their y
            low, high = axes.get_ylim()
            edges[family] = (low - 0.12 * (high - low), low)
            axes.set_ylim(edges[family][0], high)
        if rows:
            brief = len(families) > 1 or view != "oneoff"
            placing[axes][0].extend(_edge(axes, view, rows, edges[family], factor, every, brief))
    for axes, (labels, lines, points) in placing.items():  # the limits are final now
        style.place_labels(axes, labels, lines=lines, points=points, size=7.5 if len(families) == 1 else 6.5)
    _legend(figure, every, place)
    more = (
        f"The first {MOST_FAMILIES} of {len(families)} data sets and teachers." if len(families) > MOST_FAMILIES else ""
    )
    _notes(figure, summary, more)
    style.save(figure, pdf, png)


def _layout(plt, families):
    """(figure, (family, view) → axes, height of the legend): one large panel above two, or a row of three a family."""
    panels = {}
    if len(families) == 1:
        figure = plt.figure(figsize=(style.WIDTH, 6.4))
        grid = figure.add_gridspec(2, 3, height_ratios=[1.3, 1], hspace=0.36, wspace=0.1)
        cells = {"oneoff": grid[0, :], "amortised": grid[1, 0], "marginal": grid[1, 1], "campaign": grid[1, 2]}
        for view, cell in cells.items():
            panels[families[0], view] = figure.add_subplot(cell, sharey=panels.get((families[0], "oneoff")))
        for view in ("marginal", "campaign"):
            panels[families[0], view].tick_params(labelleft=False)
        return figure, panels, 0.965
    height = 2.55 * len(families) + 0.6
    figure = plt.figure(figsize=(style.WIDTH + 1.2, height))
    top = 1 - 0.75 / height
    grid = figure.add_gridspec(
        len(families), len(VIEWS), width_ratios=[1.35, 1, 1, 1], hspace=0.42, wspace=0.11, top=top, bottom=0.5 / height
    )
    for line, family in enumerate(families):
        for column, view in enumerate(VIEWS):
            axes = figure.add_subplot(grid[line, column], sharey=panels.get((family, "oneoff")))
            axes.tick_params(labelleft=column == 0)
            panels[family, view] = axes
    return figure, panels, top + 0.6 / height


def _panel(axes, view: str, rows, shown: set[str], factor: float, every, brief: bool) -> tuple[list, list, list]:
    """Draw one view; returns the labels to place, and the lines and markers that they should not cover."""
    labels, lines = [], []
    energies = [r for r in rows if r[f"e_{view}_kwh"] is not None]
    points = [r for r in energies if r["q"] is not None]
    if not energies:
        axes.text(0.5, 0.5, "no energy is known", transform=axes.transAxes, ha="center", color="#777777")
        axes.set_xticks([])
    for row in points:
        colour, marker = style.pipeline_style(row["pipeline"], every)
        x, y = row[f"e_{view}_kwh"] * factor, row["q"]
        # Seeds alone: what the meter or a model may be off by is common to all points and moves none past another.
        low, high = row.get(f"e_{view}_spread_low_kwh"), row.get(f"e_{view}_spread_high_kwh")
        xerr = None if low is None else [[x - max(low, 0) * factor], [high * factor - x]]
        yerr = None if row["q_low"] is None else [[max(y - row["q_low"], 0)], [max(row["q_high"] - y, 0)]]
        on_front = row[f"on_front_{view}"]
        if row["group"] not in shown and not on_front:  # another setting of a sweep
            axes.plot(x, y, marker, ms=3.2, mfc="white", mec=colour, mew=0.7, alpha=0.6, zorder=3, ls="none")
            continue
        if yerr:
            lines.append([(x, y - yerr[0][0]), (x, y + yerr[1][0])])
        if xerr:
            lines.append([(x - xerr[0][0], y), (x + xerr[1][0], y)])
        if xerr or yerr:
            axes.errorbar(
                x, y, yerr, xerr, fmt="none", ecolor=colour, elinewidth=0.8, capsize=1.5, alpha=0.45, zorder=2
            )
        axes.plot(x, y, marker, ms=6.5, mfc=colour if on_front else "white", mec=colour, mew=1.3, zorder=4, ls="none")
        if on_front or 0 < len(shown) <= MOST_LABELS:
            labels.append((x, y, _text(row, brief), style.darker(colour)))
    front = sorted((r[f"e_{view}_kwh"] * factor, r["q"]) for r in points if r[f"on_front_{view}"])
    if len(front) > 1 and len({(r["q_reference"], r["dataset"]) for r in points}) == 1:
        corners = [c for (x0, y0), (x1, y1) in itertools.pairwise(front) for c in ((x0, y0), (x1, y0), (x1, y1))]
        lines.append(corners)
        axes.step(*zip(*front, strict=True), where="post", color="#777777", lw=0.9, ls=(0, (4, 2)), zorder=1)
    axes.grid(color="#e8e8e8", lw=0.5)
    values = [r[f"e_{view}_kwh"] * factor for r in energies]
    if values and min(values) > 0 and max(values) / min(values) > 30:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
        if values:
            axes.set_xlim(right=max(max(values) * 1.18, axes.get_xlim()[1]))
    if len(labels) > MOST_LABELS:
        ordered = sorted(labels)
        labels = [ordered[round(i * (len(ordered) - 1) / (MOST_LABELS - 1))] for i in range(MOST_LABELS)]
        lines = []
    markers = [(r[f"e_{view}_kwh"] * factor, r["q"]) for r in points]
    return _shared(labels) if brief else labels, lines, markers


def _edge(
    axes, view: str, rows, strip: tuple[float, float], factor: float, every, brief: bool
) -> list[tuple[float, float, str, Any]]:
    """Draw the energies whose Q is unknown in a strip below all others; returns their labels."""
    known = [r for r in rows if r[f"e_{view}_kwh"] is not None]
    axes.axhline(strip[1], color="#999999", lw=0.6, ls=":", zorder=1)
    at = (0.99, strip[1])
    style_ = {"fontsize": 6.5, "ha": "right", "va": "top", "color": "#777777"}
    axes.annotate("Q unknown", at, (0, -2), ("axes fraction", "data"), "offset points", **style_)
    labels = []
    for row in known:
        colour, marker = style.pipeline_style(row["pipeline"], every)
        x, y = row[f"e_{view}_kwh"] * factor, sum(strip) / 2
        axes.plot(x, y, marker, ms=5.5, mfc="white", mec=colour, mew=1, zorder=4)
        labels.append((x, y, _text(row, brief), style.darker(colour)))
    return labels


def _shared(labels) -> list[tuple[float, float, str, Any]]:
    """One label, at the rightmost of the points that would bear the same: the marker shows the pipeline."""
    found: dict[str, list] = {}
    for label in labels:
        found.setdefault(label[2], []).append(label)
    result = []
    for text, same in found.items():
        x, y, _, colour = max(same)
        result.append((x, y, text, colour if len(same) == 1 else "#333333"))
    return result


def _text(row, brief: bool = False) -> str:
    """The label without the pipeline, which colour and marker show; ``brief``: the student's name alone, with that of a
    teacher other than Q's reference."""
    text = row["label"].removeprefix(pipeline_name(row["pipeline"]) + " ")
    other = row["teacher"] != row["q_reference"] and row["n_reuse"] is not None
    return f"{row['student']} · {row['teacher']}" if brief and other else str(row["student"]) if brief else text


def _legend(figure, every, top: float) -> None:
    handles = []
    for pipeline in dict.fromkeys(every):
        colour, marker = style.pipeline_style(pipeline, every)
        handles.append(Line2D([], [], marker=marker, color=colour, ls="none", ms=6.5, label=pipeline_name(pipeline)))
    handles.append(Line2D([], [], marker="o", mec="#555555", mfc="#555555", ls="none", ms=6, label="on the front"))
    handles.append(Line2D([], [], marker="o", mec="#555555", mfc="white", mew=1.3, ls="none", ms=6, label="dominated"))
    figure.legend(
        handles=handles,
        loc="upper center",
        ncol=len(handles),
        bbox_to_anchor=(0.5, top),
        handletextpad=0.2,
        columnspacing=1.4,
    )


def _notes(figure, summary, more: str) -> None:
    """What a reader must know of what is drawn: intervals, and points left out by name."""
    notes = [more] if more else []
    if any(r["q_low"] is not None for r in summary):
        level = next(r["confidence"] for r in summary if r["q_low"] is not None)
        notes.append(
            f"Bars: {100 * level:.3g} % intervals over seeds (energy: Student's t; Q: bootstrap over items and seeds)."
        )
    if any(r["seeds"] == 1 for r in summary):
        notes.append("One seed has no interval.")
    reuse = sorted({r["n_reuse"] for r in summary if r["n_reuse"] is not None})
    if reuse:
        notes.append("Real N: " + " to ".join(str(n) for n in dict.fromkeys((reuse[0], reuse[-1]))) + ".")
    if len(headline(summary)) < len(summary):
        notes.append("Small points: other settings of a sweep.")
    elif len(summary) > MOST_BARS:
        notes.append("Small points: dominated.")
    for where, why, missing in (
        ("Q unknown, at the lower edge", "q_reason", [r for r in summary if r["q"] is None]),
        ("Not shown", "e_reason", [r for r in summary if r["e_oneoff_kwh"] is None and r["q"] is not None]),
    ):
        if len(missing) > 12:
            notes.append(f"{where}: {len(missing)}, named in the tables.")
        for row in missing if len(missing) <= 12 else ():
            notes.append(f"{where}: {row['label']} ({row[why]}).")
    style.footnote(figure, " ".join(notes))
