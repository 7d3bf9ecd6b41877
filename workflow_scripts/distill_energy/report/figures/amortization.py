"""Training energy per student against the reuse count N, with N* and the real N marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ...answer.labels import pipeline_name
from .. import style
from ..select import headline, omitted_note

MOST_PANELS = 18


def draw(summary: Sequence[Mapping[str, Any]], pdf: str | Path, png: str | Path, columns: int = 3) -> None:
    """Write the amortisation figure: a panel a student. The curve is E_teacher/N + E_student, the line the baseline's
    E_student: the terms of N*, so that they cross at N*."""
    shown = headline(summary)
    panels = _panels(shown, summary)
    if not panels:
        style.nothing(
            "No pipeline reuses a teacher artifact beside a baseline of the same student and data set.", pdf, png
        )
        return
    found = len(panels)
    panels = panels[:MOST_PANELS]
    plt = style.pyplot()
    columns = min(columns, len(panels))
    lines = math.ceil(len(panels) / columns)
    width = style.WIDTH if columns > 1 else 4.6
    figure, grid = plt.subplots(lines, columns, figsize=(width, 2.75 * lines + 0.3), squeeze=False, sharex=True)
    every = [r["pipeline"] for r in summary]
    values = [r["e_student_kwh"] + r["e_teacher_kwh"] for p in panels for r in p[2]]
    factor, unit = style.energy_unit(values)
    limit = _limit(panels)
    verdicts = []
    for index, (title, base, rows) in enumerate(panels):
        axes = grid[index // columns][index % columns]
        verdicts.append((axes, _panel(axes, base, rows, every, factor, unit, limit)))
        axes.set_title(title)
        if index % columns == 0:
            axes.set_ylabel(f"Training energy per student,\nteacher's share included ({unit})")
        axes.set_xlabel("Reuse count N" if columns > 2 else "Reuse count N of the teacher's artifact")
        axes.xaxis.set_tick_params(labelbottom=True)
    for index in range(len(panels), lines * columns):
        grid[index // columns][index % columns].axis("off")
    _legend(figure, panels, every)
    figure.tight_layout(w_pad=1.2)
    _write_verdicts(verdicts)
    more = f"The first {MOST_PANELS} of {found} students." if found > MOST_PANELS else ""
    bars = (
        "Bar: interval of the difference to the baseline at the real N; where it crosses the line, it is open."
        " Beside the verdict: the balance, which is what all kept students of the artifact have saved, less what it and"
        " its selection cost."
    )
    drawn = any(r["saving_high_kwh"] is not None for p in panels for r in p[2])
    notes = [bars if drawn else "", _operations(panels, limit), omitted_note(summary, shown), more]
    style.footnote(figure, " ".join(filter(None, notes)))
    style.save(figure, pdf, png)


def _panels(summary, every) -> list[tuple[str, Mapping[str, Any], list[Mapping[str, Any]]]]:
    by_group = {r["group"]: r for r in every}
    panels: dict[str, list] = {}
    for row in summary:
        base = by_group.get(row["baseline_group"])
        # the curve and the line are those of N*, so the baseline is the row's own
        energies = (row["e_teacher_kwh"], row["e_student_kwh"], base and base["e_student_kwh"])
        if base is None or base is row or row["n_reuse"] is None or any(e is None for e in energies):
            continue
        panels.setdefault(base["group"], []).append(row)
    many = len({by_group[g]["dataset"] for g in panels}) > 1
    titles = {g: f"{by_group[g]['student']}" + (f" · {by_group[g]['dataset']}" if many else "") for g in panels}
    return [(titles[g], by_group[g], rows) for g, rows in panels.items()]


def _limit(panels) -> float:
    rows = [r for p in panels for r in p[2]]
    wanted = [r["n_star"] for r in rows if r["n_star_status"] == "finite"] + [r["n_reuse"] for r in rows]
    return min(max(10.0, 2.2 * max(wanted)), 2000.0)


def _panel(axes, base, rows, every, factor: float, unit: str, limit: float) -> list[tuple[str, Any]]:
    """Draw a student; returns its verdicts with their colours."""
    counts = np.geomspace(1, limit, 200)
    colour, _ = style.pipeline_style(base["pipeline"], every)
    level = base["e_student_kwh"] * factor
    axes.axhline(level, color=colour, lw=1.4, zorder=2)
    top = max([(r["e_teacher_kwh"] + r["e_student_kwh"]) * factor for r in rows] + [level])
    lines = []
    for row in rows:
        colour, marker = style.pipeline_style(row["pipeline"], every)
        energies = (row["e_teacher_kwh"] / counts + row["e_student_kwh"]) * factor
        axes.plot(counts, energies, color=colour, lw=1.5, zorder=3, ls=["-", "--", ":", "-."][len(lines) % 4])
        here = (row["e_teacher_kwh"] / row["n_reuse"] + row["e_student_kwh"]) * factor
        axes.plot(row["n_reuse"], here, marker, color=colour, ms=6.5, mec="white", mew=0.8, zorder=5, clip_on=False)
        if row["saving_high_kwh"] is not None:
            # Against the baseline's line: where the bar crosses it, it is open which costs less at this N.
            share = row["e_teacher_kwh"] / row["n_reuse"] * factor
            ends = [level + share - row[f"saving_{end}_kwh"] * factor for end in ("high", "low")]
            x = row["n_reuse"] * (1 + 0.09 * (len(lines) - (len(rows) - 1) / 2))  # side by side
            _bar(axes, x, ends, top, colour)
        if row["n_star_status"] == "finite" and row["n_star"] <= limit:
            axes.plot([row["n_star"]] * 2, [0, level], color=colour, lw=0.8, ls=(0, (2, 2)), zorder=2)
            axes.plot(row["n_star"], level, "x", color=colour, ms=6.5, mew=1.8, zorder=6)
        if row["n_star_flops_status"] == "finite" and row["n_star_flops"] <= limit:
            axes.plot(row["n_star_flops"], level, "D", color=colour, mfc="none", ms=5.5, mew=1.2, zorder=6)
        lines.append((row, style.darker(colour), _verdict(row) + _balance(row, factor, unit)))
    axes.set_xscale("log")
    axes.set_xlim(1, limit)
    axes.set_ylim(0, top * (1.08 + 0.1 * len(rows)))
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#eeeeee", lw=0.5)
    return [(text, shade) for _, shade, text in lines]


def _write_verdicts(panels) -> None:
    """The verdicts in the upper right of each panel, in one size with which the longest fits. ``panels``: (axes, (text,
    colour) by line)."""
    size = 7.2
    for axes, lines in panels:
        renderer = axes.figure.canvas.get_renderer()
        room = 0.94 * axes.get_window_extent(renderer).width
        for text, _ in lines:
            probe = axes.text(0, 0, text, fontsize=7.2)
            size = min(size, 7.2 * room / probe.get_window_extent(renderer).width)
            probe.remove()
    for axes, lines in panels:
        for index, (text, shade) in enumerate(lines):
            axes.text(
                0.99,
                0.97 - 0.09 * index,
                text,
                transform=axes.transAxes,
                ha="right",
                va="top",
                fontsize=size,
                color=shade,
                zorder=7,
            )


def _bar(axes, x: float, ends: Sequence[float], top: float, colour: str) -> None:
    """An interval that stays below the verdicts; an arrowhead where it goes on."""
    low, high = max(ends[0], 0), min(ends[1], top)
    axes.plot([x, x], [low, high], color=colour, lw=1.1, alpha=0.8, zorder=4, solid_capstyle="butt")
    if ends[1] > top:
        axes.plot(x, high, "^", color=colour, ms=3.5, alpha=0.8, zorder=4)
    if ends[0] < 0:
        axes.plot(x, 0, "v", color=colour, ms=3.5, alpha=0.8, zorder=4, clip_on=False)


def _balance(row, factor: float, unit: str) -> str:
    """What its artifact has saved so far less what it cost, over all who consumed it."""
    value = row["balance_kwh"]
    if value is None:
        return ""
    return f", {'+' if value >= 0 else '−'}{style.number(abs(value) * factor, 2)} {unit}"


def _verdict(row) -> str:
    name = pipeline_name(row["pipeline"]) + _setting(row)
    if row["n_star_status"] == "never":
        return f"{name}: never"
    if row["n_star_status"] == "undecided":
        return f"{name}: undecided"
    if row["n_star_status"] != "finite":
        return f"{name}: unknown"
    text = f"{name}: N* = {style.number(row['n_star'])}"
    if row["n_star_low"] is not None and row["n_star_high"] is not None:
        return f"{text} ({style.number(row['n_star_low'], 2)}–{style.number(row['n_star_high'], 2)})"
    return text + " (one seed)"


def _operations(panels, limit: float) -> str:
    """What N* in floating-point operations is, where no marker shows it."""
    said: dict[str, list[str]] = {}
    for _, _, rows in panels:
        for row in rows:
            status, value = row["n_star_flops_status"], row["n_star_flops"]
            if status == "finite" and value <= limit:
                continue
            words = style.number(value) if status == "finite" else status
            said.setdefault(f"{pipeline_name(row['pipeline'])}{_setting(row)} {words}", []).append(row["student"])
    count = len(panels)
    parts = [f"{what} for {len(students)} of {count} students" for what, students in said.items()]
    return f"N* in floating-point operations: {'; '.join(parts)}." if parts else ""


def _setting(row) -> str:
    label = row["label"]
    return " " + label[label.index("(") :] if "(" in label else ""


def _legend(figure, panels, every) -> None:
    base = panels[0][1]
    colour, _ = style.pipeline_style(base["pipeline"], every)
    handles = [Line2D([], [], color=colour, lw=1.4, label=f"{pipeline_name(base['pipeline'])} (baseline)")]
    for pipeline in dict.fromkeys(r["pipeline"] for p in panels for r in p[2]):
        colour, marker = style.pipeline_style(pipeline, every)
        handles.append(
            Line2D([], [], color=colour, lw=1.5, marker=marker, ms=6, label=f"{pipeline_name(pipeline)}, at its real N")
        )
    handles.append(Line2D([], [], color="#555555", marker="x", ls="none", mew=1.8, ms=6.5, label="break-even N*"))
    if any(r["n_star_flops_status"] == "finite" for p in panels for r in p[2]):
        handles.append(Line2D([], [], color="#555555", marker="D", mfc="none", ls="none", ms=5.5, label="N* in FLOPs"))
    figure.legend(
        handles=handles, loc="lower center", ncol=len(handles), bbox_to_anchor=(0.5, 0.985), columnspacing=1.6
    )
