"""Evaluation loss against the energy spent on training so far: what quality a joule bought."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D

from ...answer.labels import pipeline_name
from ...answer.trajectory import COMPARABLE, Trajectory, read_trajectory
from .. import style

NEEDS = "ledger"
MOST_PANELS = 18


def draw(rows: Sequence[Mapping[str, Any]], pdf: str | Path, png: str | Path, columns: int = 3) -> None:
    """Write the trajectories: a panel a student (and data set), a line a run, the shared validation loss on y."""
    panels = _panels(rows)
    if not panels:
        style.nothing(
            "No training run has a trajectory with joules and a loss on the shared validation answers.", pdf, png
        )
        return
    count = len(panels)
    panels = dict(list(panels.items())[:MOST_PANELS])
    plt = style.pyplot()
    columns = min(columns, len(panels))
    lines = math.ceil(len(panels) / columns)
    width = style.WIDTH if columns > 1 else 4.6
    figure, grid = plt.subplots(lines, columns, figsize=(width, 2.6 * lines), squeeze=False, sharey=True)
    found = {row["pipeline"] for runs in panels.values() for row, _ in runs}
    every = sorted(found, key=lambda p: (list(style.PIPELINES).index(p) if p in style.PIPELINES else 99, p))
    factor, unit = style.energy_unit([t.joules[-1] / 3.6e6 for runs in panels.values() for _, t in runs])
    for index, (title, runs) in enumerate(panels.items()):
        axes = grid[index // columns][index % columns]
        for row, trajectory in runs:
            colour, marker = style.pipeline_style(row["pipeline"], every)
            energies = [j / 3.6e6 * factor for j in trajectory.joules]
            axes.plot(energies, trajectory.losses, marker=marker, ms=3.5, lw=1.1, color=colour, alpha=0.85)
        axes.set_title(title)
        axes.set_xlabel(f"Training energy so far ({unit})")
        axes.set_xlim(left=0)
        axes.grid(color="#eeeeee", lw=0.5)
        if index % columns == 0:
            axes.set_ylabel("Validation loss (nats a token)")
    for index in range(len(panels), lines * columns):
        grid[index // columns][index % columns].axis("off")
    _legend(figure, every)
    figure.tight_layout(w_pad=1.0)
    more = f" The first {MOST_PANELS} of {count} students." if count > MOST_PANELS else ""
    note = "One line a run. The loss is that on the data set's own validation answers for every pipeline."
    style.footnote(figure, note + more)
    style.save(figure, pdf, png)


def _panels(rows) -> dict[str, list[tuple[Mapping[str, Any], Trajectory]]]:
    current = [r for r in rows if r["stage"] == "student_training" and r["status"] == "ok" and r["current"]]
    many = len({r["dataset"] for r in current}) > 1
    panels: dict[str, list] = {}
    for row in sorted(current, key=lambda r: (str(r["student"]), str(r["pipeline"]), r["seed"] or 0)):
        trajectory = read_trajectory(row["path"])
        if trajectory is not None and trajectory.metric == COMPARABLE:
            title = f"{row['student']}" + (f" · {row['dataset']}" if many else "")
            panels.setdefault(title, []).append((row, trajectory))
    return dict(sorted(panels.items(), key=lambda item: item[1][0][1].joules[-1]))


def final_losses(rows) -> dict[str, dict[str, float]]:
    """Student → pipeline → the last loss of its runs, their mean."""
    found = {}
    for student, runs in _panels(rows).items():
        last: dict[str, list[float]] = {}
        for row, trajectory in runs:
            last.setdefault(row["pipeline"], []).append(trajectory.losses[-1])
        found[student] = {pipeline: math.fsum(values) / len(values) for pipeline, values in last.items()}
    return found


def _legend(figure, every) -> None:
    handles = []
    for pipeline in every:
        colour, marker = style.pipeline_style(pipeline, every)
        handles.append(Line2D([], [], color=colour, marker=marker, ms=4.5, lw=1.2, label=pipeline_name(pipeline)))
    figure.legend(handles=handles, loc="lower center", ncol=len(handles), bbox_to_anchor=(0.5, 0.985))
