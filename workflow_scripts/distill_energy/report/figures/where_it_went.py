"""Every joule of a study by place, and within each by phase: how much of it was the harness's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...ledger.places import PHASES, PLACES
from .. import style

NEEDS = "places"
WORDS = {
    "own": "own: kept runs' training and evaluation",
    "shared": "shared: prerun, data, teacher artifacts",
    "selection": "selection: settings not kept",
    "abandoned": "abandoned: listed no more",
    "wasted": "wasted: attempts that made nothing",
}
COLOURS = {
    "start": ("#882255", "starting programs"),
    "load": ("#CC79A7", "loading models"),
    "compute": ("#0072B2", "computing"),
    "evaluate": ("#56B4E9", "evaluating in training"),
    "write": ("#E69F00", "writing"),
    None: ("#999999", "not told apart"),
}


def amounts(places: Sequence[Mapping[str, Any]]) -> dict[str, dict[str | None, float]]:
    """Place → phase → J, of the joules that are known."""
    found: dict[str, dict[str | None, float]] = {place: dict.fromkeys((*PHASES, None), 0.0) for place in PLACES}
    for item in places:
        if item["joules"] is not None:
            found[item["place"]][item["phase"]] += item["joules"]
    return found


def draw(places: Sequence[Mapping[str, Any]], pdf: str | Path, png: str | Path) -> None:
    """Write the figure: a horizontal bar a place, its phases stacked, its share of all at its end."""
    found = amounts(places)
    whole = math.fsum(value for phases in found.values() for value in phases.values())
    if whole <= 0:
        style.nothing("No execution has a known energy.", pdf, png)
        return
    plt = style.pyplot()
    shown = [place for place in PLACES if sum(found[place].values()) > 0]
    factor, unit = style.energy_unit([sum(found[place].values()) / 3.6e6 for place in shown])
    figure, axes = plt.subplots(figsize=(style.WIDTH, 0.9 + 0.38 * len(shown)))
    for position, place in enumerate(shown):
        left = 0.0
        for phase, joules in found[place].items():
            width = joules / 3.6e6 * factor
            axes.barh(position, width, 0.62, left, color=COLOURS[phase][0], edgecolor="white", lw=0.4, zorder=2)
            left += width
        share = 100 * sum(found[place].values()) / whole
        axes.text(left, position, f"  {style.number(left)} {unit} ({share:.0f} %)", va="center", fontsize=7.5)
    axes.set_yticks(range(len(shown)), [WORDS[place] for place in shown])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="#e8e8e8", lw=0.5)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.18)
    axes.set_xlabel(f"Energy ({unit})")
    used = [phase for phase in COLOURS if any(found[place][phase] > 0 for place in shown)]
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[phase][0], label=COLOURS[phase][1]) for phase in used]
    axes.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.3, 1.0), ncol=min(len(handles), 6), columnspacing=1.2
    )
    unknown = sum(item["joules"] is None for item in places)
    style.footnote(figure, f"{unknown} executions spent an unknown energy, which is not shown." if unknown else "")
    style.save(figure, pdf, png)
