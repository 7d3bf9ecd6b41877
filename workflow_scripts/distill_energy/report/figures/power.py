"""Power over time of each stage's longest execution."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ...store import bounded
from .. import style

NEEDS = "ledger"
POINTS = 1500  # drawn of a trace at most; longer ones are averaged
LINES = {"gpu": "-", "cpu": "-", "dram": ":"}


def draw(rows: Sequence[Mapping[str, Any]], pdf: str | Path, png: str | Path, columns: int = 2) -> None:
    """Write the power traces: a panel a stage, a line a device, the mean idle power dashed where it is known."""
    panels = _panels(rows)
    if not panels:
        style.nothing("No execution has a power trace.", pdf, png)
        return
    plt = style.pyplot()
    lines = math.ceil(len(panels) / columns)
    figure, grid = plt.subplots(lines, columns, figsize=(style.WIDTH, 1.75 * lines + 0.2), squeeze=False)
    for index, (row, traces) in enumerate(panels):
        axes = grid[index // columns][index % columns]
        _panel(axes, row, traces)
        if index % columns == 0:
            axes.set_ylabel("Power (W)")
    for index in range(len(panels), lines * columns):
        grid[index // columns][index % columns].axis("off")
    figure.tight_layout(h_pad=0.8, w_pad=1.2)
    style.footnote(figure, "The longest execution of each stage. " + _idle_note([row for row, _ in panels]))
    style.save(figure, pdf, png)


def read_trace(path: str | Path) -> dict[tuple[str, str], tuple[list[float], list[float]]]:
    """(component, device) → (seconds, watts) of ``power.parquet``, attempts one after the other.

    Where a device has a counter and no power reading, watts are the mean from one reading to the next, told at its
    end, and the first has those of the second; a counter that fell (a wrap or a reset) leaves a hole and not a negative
    power. Readings that follow at once (a phase's edge, the end) belong to the next interval: over a few milliseconds
    an estimate that is renewed once a second gives 0 W or many.
    """
    path = Path(path)
    if not path.is_file():
        return {}
    bounded.check(path)
    table = pq.ParquetFile(path).read().to_pydict()
    traces: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    offset, before, start = 0.0, None, None
    last: dict[tuple[str, str], tuple[float, float]] = {}
    columns = ("attempt", "mono_s", "component", "device", "watts", "counter_j")
    readings = list(zip(*(table[c] for c in columns), strict=True))
    least = _usual_interval(readings) / 2
    for attempt, mono, component, device, watts, counter in readings:
        if attempt != before:
            longest = max((t[0][-1] for t in traces.values() if t[0]), default=0.0)
            offset, before, start = longest, attempt, mono
            last.clear()
        key = (component, device or "")
        seconds = offset + mono - start
        if watts is None and counter is not None:
            earlier = last.get(key)
            if earlier is not None and mono - earlier[0] < least and counter >= earlier[1]:
                continue
            last[key] = (mono, counter)
            if earlier is not None and counter >= earlier[1]:
                watts = (counter - earlier[1]) / (mono - earlier[0])
                if key not in traces:
                    traces[key] = ([offset + earlier[0] - start], [watts])
        if watts is not None and math.isfinite(watts):
            seen = traces.setdefault(key, ([], []))
            seen[0].append(seconds)
            seen[1].append(watts)
    return {key: trace for key, trace in traces.items() if len(trace[0]) > 1}


def _usual_interval(readings) -> float:
    """Median seconds between readings of a device at different times."""
    seen: dict[tuple, float] = {}
    steps = []
    for attempt, mono, component, device, *_ in readings:
        key = (attempt, component, device)
        if mono > seen.get(key, mono):
            steps.append(mono - seen[key])
        seen[key] = mono
    return statistics.median(steps) if steps else 0.0


def thinned(seconds: Sequence[float], watts: Sequence[float], points: int = POINTS) -> tuple[list[float], list[float]]:
    """At most ``points`` samples, by means of equal runs of samples."""
    step = math.ceil(len(seconds) / points)
    if step <= 1:
        return list(seconds), list(watts)
    runs = range(0, len(seconds), step)

    def mean(values: Sequence[float], at: int) -> float:
        part = values[at : at + step]
        return math.fsum(part) / len(part)

    return [mean(seconds, i) for i in runs], [mean(watts, i) for i in runs]


def _idle_note(rows) -> str:
    """What the dashed line is, or why there is none."""
    if any(row["idle_j"] is not None for row in rows):
        return "Dashed: mean idle power of the host."
    if all(row["source"] == "estimated" for row in rows):
        return "No idle line: an estimate of one process leaves out the machine's idle power."
    return "No idle line: the host's idle power is unknown."


def _panels(rows) -> list[tuple[Mapping[str, Any], dict]]:
    panels = []
    for stage in style.STAGE_COLOURS:
        members = [r for r in rows if r["stage"] == stage and r["status"] == "ok" and r["current"] and r["wall_s"]]
        for row in sorted(members, key=lambda r: -r["wall_s"])[:3]:
            traces = read_trace(Path(row["path"]) / "power.parquet")
            # what is outside the stage's sum (a flat RAM model) is outside its picture too
            counted = {k: t for k, t in traces.items() if row["total_j"] is None or row[f"{k[0]}_j"] is not None}
            if counted:
                panels.append((row, counted))
                break
    return panels


def _panel(axes, row, traces) -> None:
    colour = style.darker(style.STAGE_COLOURS[row["stage"]], 0.8)
    longest = max(t[0][-1] for t in traces.values())
    scale, unit = (60.0, "min") if longest > 600 else (1.0, "s")
    several = len(traces) > 1
    for index, ((component, device), (seconds, watts)) in enumerate(sorted(traces.items())):
        x, y = thinned([s / scale for s in seconds], watts)
        step = "steps-pre" if len(seconds) <= POINTS else "default"  # a mean holds from the reading before
        axes.plot(
            x, y, color=colour, lw=1.0, ls=LINES.get(component, "-"), alpha=1 - 0.25 * (index % 3), drawstyle=step
        )
        if several:
            name = component.upper() + (f" {device[-6:]}" if sum(k[0] == component for k in traces) > 1 else "")
            axes.annotate(
                name, (x[-1], y[-1]), (3, 0), textcoords="offset points", fontsize=7, va="center", color=colour
            )
    if row["idle_j"] is not None and row["wall_s"]:
        idle = row["idle_j"] / row["wall_s"]
        axes.axhline(idle, color="#666666", lw=0.8, ls=(0, (4, 3)))
        axes.annotate(
            f"idle {style.number(idle)} W", (0.01, idle), (0, 2), ("axes fraction", "data"), "offset points", fontsize=7
        )
    name = row["name"] if len(row["name"]) < 26 else f"…{row['name'][-24:]}"
    axes.set_title(row["stage"].replace("_", " "), fontsize=8.5)
    axes.set_title(f"{name}, {row['source']}", loc="right", fontsize=6.5, color="#666666")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, longest / scale)
    axes.grid(color="#eeeeee", lw=0.5)
    axes.set_xlabel(f"Time ({unit})")
