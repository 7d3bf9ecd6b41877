"""What each figure shows, in a sentence: its text for who cannot see it, and the head of its caption."""

from __future__ import annotations

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..answer.labels import pipeline_name
from ..ledger.places import PLACES
from .figures.sweep import find_sweeps
from .figures.trajectories import final_losses
from .select import headline
from .style import number

Row = Mapping[str, Any]
MOST_NAMES = 8
VERDICTS = {"finite": "pays back", "never": "never pays back", "undecided": "undecided", "unknown": "unknown"}


def findings(
    rows: Sequence[Row], summary: Sequence[Row], places: Sequence[Row] = (), forecast: str | Path | None = None
) -> dict[str, str]:
    """Figure → sentence, of a ledger, a summary, ``where_it_went``'s rows and a ``forecast.csv``. Figures of which
    nothing can be said are left out."""
    said = {
        "pareto": pareto(summary),
        "stage_breakdown": stages(summary),
        "where_it_went": where(places),
        "amortization": reuse(summary),
        "trajectories": losses(rows),
        "sweep": sweeps(summary),
        "power": power(rows),
        "forecast": forecasts(forecast),
    }
    return {name: text for name, text in said.items() if text}


def _list(names: Sequence[str]) -> str:
    """Names in a row, with their number where they are many."""
    more = len(names) - MOST_NAMES
    shown = [*names[:MOST_NAMES], f"{more} more"] if more > 0 else list(names)
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _between(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def pareto(summary: Sequence[Row]) -> str | None:
    """Who is on the front, the teacher counted whole."""
    placed = [r for r in summary if r["on_front_oneoff"] is not None]
    if not placed:
        return None
    front = [r["label"] for r in sorted(placed, key=lambda r: r["e_oneoff_kwh"]) if r["on_front_oneoff"]]
    left = len(placed) - len(front)
    rest = f"; {left} other{'s are' if left > 1 else ' is'} dominated" if left else ""
    return f"With the teacher counted whole, {_list(front)} {'is' if len(front) == 1 else 'are'} on the front{rest}."


def stages(summary: Sequence[Row]) -> str | None:
    """How many times the baseline each pipeline takes, and how much of it is the teacher's."""
    base = {r["group"]: r["e_oneoff_kwh"] for r in summary}
    ratios, shares = defaultdict(list), defaultdict(list)
    for row in headline(summary):
        whole, other = row["e_oneoff_kwh"], base.get(row["baseline_group"])
        if row["is_baseline"] or not whole or not other:
            continue
        ratios[row["pipeline"]].append(whole / other)
        if row["e_teacher_kwh"]:
            shares[row["pipeline"]].append(row["e_teacher_kwh"] / whole)
    parts = []
    for pipeline, values in ratios.items():
        text = f"{pipeline_name(pipeline)} takes {_between(values, '{:.1f}')} times the baseline's energy"
        if shares[pipeline]:
            text += f", {_between([100 * s for s in shares[pipeline]], '{:.0f}')} % of it the teacher's"
        parts.append(text)
    return f"Counted whole, {'; '.join(parts)}." if parts else None


def where(places: Sequence[Row]) -> str | None:
    """The largest places, and the share that is not computing."""
    known = [p for p in places if p["joules"] is not None]
    whole = math.fsum(p["joules"] for p in known)
    if not whole:
        return None
    by_place = {name: math.fsum(p["joules"] for p in known if p["place"] == name) for name in PLACES}
    spent = [f"{100 * v / whole:.0f} % {name}" for name, v in sorted(by_place.items(), key=lambda i: -i[1]) if v > 0]
    own = math.fsum(p["joules"] for p in known if p["phase"] in ("start", "load", "write"))
    told = any(p["phase"] in ("start", "load") for p in known)
    return f"Of all joules {_list(spent)}" + (
        f"; {100 * own / whole:.0f} % started, loaded and wrote." if told else "."
    )


def reuse(summary: Sequence[Row]) -> str | None:
    """For how many students each pipeline pays back, never does, or is undecided."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for row in headline(summary):
        if not row["is_baseline"] and row["n_reuse"] is not None:
            counts[row["pipeline"]][VERDICTS.get(row["n_star_status"], "unknown")] += 1
    parts = []
    for pipeline, found in counts.items():
        whole = sum(found.values())
        words = ", ".join(f"{verdict} for {count} of {whole} students" for verdict, count in found.items())
        parts.append(f"{pipeline_name(pipeline)}: {words}")
    return f"{'; '.join(parts)}." if parts else None


def losses(rows: Sequence[Row]) -> str | None:
    """The pipeline with the lowest final validation loss of each student, mean over its runs."""
    best = []
    for student, by_pipeline in final_losses(rows).items():
        pipeline, loss = min(by_pipeline.items(), key=lambda item: item[1])
        best.append(f"{pipeline_name(pipeline)} for {student} ({loss:.2f})")
    return f"Lowest final validation loss: {_list(best)}." if best else None


def sweeps(summary: Sequence[Row]) -> str | None:
    """The setting with the best Q of each sweep."""
    best = []
    for sweep in find_sweeps(summary):
        known = [m for m in sweep["members"] if m["q"] is not None]
        if known:
            row = max(known, key=lambda m: m["q"])
            best.append(f"{row['label']} ({row['q']:.3f})")
    return f"The best Q of each sweep: {_list(best)}." if best else None


def power(rows: Sequence[Row]) -> str | None:
    """Mean power of each stage's longest execution."""
    longest: dict[str, Row] = {}
    for row in rows:
        told = row["status"] == "ok" and row["current"] and row["wall_s"] and row["total_j"] is not None
        if told and row["wall_s"] > longest.get(row["stage"], {"wall_s": 0.0})["wall_s"]:
            longest[row["stage"]] = row
    means = [f"{stage.replace('_', ' ')} {number(r['total_j'] / r['wall_s'], 2)} W" for stage, r in longest.items()]
    return f"Mean power: {_list(means)}." if means else None


def forecasts(path: str | Path | None) -> str | None:
    """How many stages were within their forecast interval."""
    if path is None or not Path(path).is_file():
        return None
    with open(path, newline="", encoding="utf-8") as handle:
        lines = [line for line in csv.DictReader(handle) if line.get("measured_kwh")]
    if not lines:
        return None
    inside = sum(float(x["low_kwh"]) <= float(x["measured_kwh"]) <= float(x["high_kwh"]) for x in lines)
    return f"{inside} of {len(lines)} stages were within their 90 % interval."
