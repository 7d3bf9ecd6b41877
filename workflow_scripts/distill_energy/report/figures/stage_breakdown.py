"""Energy of each pipeline and student by stage, stacked; idle and wasted parts hatched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.patches import Patch

from .. import style
from ..select import headline, omitted_note

MOST_BARS = 60  # a taller picture than this fits no page


def segments(row: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """(part, what, kWh) in drawing order: the useful, idle and wasted shares of each part of E_total.

    What was wasted includes its own idle energy, so the idle share shown is that of the completed attempts; without an
    idle measurement a part is drawn whole.
    """
    found = []
    for part in style.PARTS:
        whole = row[f"e_{part}_kwh"]
        if not whole:
            continue
        wasted = min(row[f"e_{part}_wasted_kwh"] or 0.0, whole)
        idle = min((row[f"e_{part}_idle_kwh"] or 0.0) * (1 - wasted / whole), whole - wasted)
        found += [(part, "used", whole - idle - wasted), (part, "idle", idle), (part, "wasted", wasted)]
    return [s for s in found if s[2] > 0]


def draw(summary: Sequence[Mapping[str, Any]], pdf: str | Path, png: str | Path) -> None:
    """Write the stage breakdown: a horizontal bar a group, the total with its interval and its ratio to the
    baseline."""
    known = [r for r in summary if r["e_oneoff_kwh"] is not None and r["e_student_kwh"] is not None]
    rows = headline(known)
    notes = [omitted_note(known, rows)] if len(known) > len(rows) else []
    if len(rows) > MOST_BARS:
        notes.append(f"The first {MOST_BARS} of {len(rows)} bars.")
        rows = rows[:MOST_BARS]
    if not rows:
        style.nothing("No run has a known energy in every stage.", pdf, png)
        return
    plt = style.pyplot()
    factor, unit = style.energy_unit([r["e_oneoff_kwh"] for r in rows])
    figure, axes = plt.subplots(figsize=(style.WIDTH, 1.1 + 0.27 * len(rows)))
    base = {r["group"]: r["e_oneoff_kwh"] for r in summary}
    top = max(r["e_oneoff_high_kwh"] or r["e_oneoff_kwh"] for r in rows) * factor
    position, ticks = 0.0, []
    before = None
    for row in rows:
        family = (row["student"], row["dataset"], row["teacher"])
        position += 0.45 if before not in (None, family) else 0.0
        before = family
        _bar(axes, position, row, factor)
        low, high = row["e_oneoff_low_kwh"], row["e_oneoff_high_kwh"]
        total = row["e_oneoff_kwh"] * factor
        if low is not None:  # below the bar, which it would hide
            under = position + 0.42
            axes.plot([max(low, 0) * factor, high * factor], [under, under], color="#444444", lw=0.9, zorder=4)
            for end in (max(low, 0), high):
                axes.plot([end * factor] * 2, [under - 0.07, under + 0.07], color="#444444", lw=0.9, zorder=4)
        text = f"{style.number(total)} {unit}"
        reference = base.get(row["baseline_group"])
        if reference and not row["is_baseline"]:
            text += f"  ({row['e_oneoff_kwh'] / reference:.1f}× the baseline)"
        axes.text(total + 0.012 * top, position, text, va="center", fontsize=7.5)
        ticks.append((position, row["label"]))
        position += 1
    axes.set_yticks([t[0] for t in ticks], [t[1] for t in ticks])
    axes.invert_yaxis()
    axes.set_ylim(position - 0.4, -0.6)
    axes.set_xlim(0, top * 1.3)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="#e8e8e8", lw=0.5)
    axes.set_xlabel(f"Energy per student, the teacher counted whole ({unit})")
    _legend(axes, rows)
    unknown = [f"{r['label']} ({r['e_reason']})" for r in summary if r not in known]
    notes += [f"Not shown: {'; '.join(unknown)}."] if unknown else []
    style.footnote(figure, " ".join(notes))
    style.save(figure, pdf, png)


def _bar(axes, position: float, row, factor: float) -> None:
    left = 0.0
    hatches = {"used": None, "idle": "////", "wasted": "xxxx"}
    for part, what, value in segments(row):
        colour = style.PARTS[part][0]
        axes.barh(
            position, value * factor, 0.62, left, color=colour, hatch=hatches[what], edgecolor="white", lw=0.4, zorder=2
        )
        left += value * factor


def _legend(axes, rows) -> None:
    present = [(p, w) for r in rows for p, w, _ in segments(r)]
    parts = [p for p in style.PARTS if any(p == q for q, _ in present)]
    handles = [Patch(facecolor=style.PARTS[p][0], label=style.PARTS[p][1]) for p in parts]
    for what, hatch, text in (("idle", "////", "idle share"), ("wasted", "xxxx", "wasted (failed attempts)")):
        if any(w == what for _, w in present):
            handles.append(Patch(facecolor="#777777", edgecolor="white", hatch=hatch, label=text))
    axes.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.4, 1.0),
        ncol=len(handles) if len(handles) <= 5 else 4,
        columnspacing=1.2,
        handlelength=1.4,
    )
