"""A picture of what was made from what: the ledger's executions, gathered by kind, as a small SVG."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from ..answer.labels import pipeline_name
from .sentences import energy
from .style import STAGE_COLOURS

LAYERS = ("preprocess", "teacher", "student_training", "evaluation")
BOX = (178, 46)  # pixels
GAP = (74, 16)


def _kind(row: Mapping[str, Any]) -> tuple[int, str, str] | None:
    """(layer, stage, name) under which an execution is gathered."""
    stage = row["stage"]
    if stage == "preprocess":
        return 0, stage, "Data set" if row["name"].startswith("data-") else "Models"
    if stage in ("teacher_logits", "teacher_generation"):
        return 1, stage, "Teacher logits" if stage == "teacher_logits" else "Teacher generation"
    if stage == "reference_logprobs":
        return 2, stage, "Reference log-probabilities"
    if stage == "student_training":
        return 2, stage, f"Training: {pipeline_name(row['pipeline'])}"
    if stage == "evaluation":
        return (
            3,
            stage,
            "Evaluation: teacher" if row["role"] == "teacher" else f"Evaluation: {pipeline_name(row['pipeline'])}",
        )
    return None  # prerun measures the host and contamination counts: nothing is made from them


def svg(rows: Sequence[Mapping[str, Any]], told: Callable[[float | None], str] = energy) -> str:
    """The picture as an SVG element in the page's own colours; an empty string without rows. ``told``: how kWh are
    written."""
    nodes: dict[tuple[int, str, str], list[Mapping[str, Any]]] = defaultdict(list)
    where: dict[str, tuple[int, str, str]] = {}
    for row in rows:
        if row["status"] not in ("ok", "consumes_missing") or not row["current"] or (kind := _kind(row)) is None:
            continue
        nodes[kind].append(row)
        where[f"{row['stage']}/{row['name']}/{row['version']}"] = kind
    if not nodes:
        return ""
    edges = sorted(
        {
            (where[parent], kind)
            for kind, members in nodes.items()
            for row in members
            for parent in row["consumes"]
            if parent in where and where[parent] != kind
        }
    )
    edges = _reduced(edges)
    columns: dict[int, list] = defaultdict(list)
    for kind in sorted(nodes, key=_rank):
        columns[kind[0]].append(kind)
    order = sorted(columns)
    height = max(len(c) for c in columns.values()) * (BOX[1] + GAP[1]) + GAP[1]
    width = len(order) * (BOX[0] + GAP[0]) - GAP[0] + 4
    place = {}
    for column, layer in enumerate(order):
        members = columns[layer]
        top = (height - len(members) * (BOX[1] + GAP[1]) + GAP[1]) / 2
        for index, kind in enumerate(members):
            place[kind] = (2 + column * (BOX[0] + GAP[0]), top + index * (BOX[1] + GAP[1]))
    parts = [_edge(place[a], place[b]) for a, b in edges]
    parts += [_node(place[kind], kind, members, told) for kind, members in nodes.items()]
    label = "Which stages were made from which: " + ", ".join(f"{k[2]} ({len(m)})" for k, m in nodes.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" role="img" '
        f'aria-label="{escape(label)}" font-family="inherit">{"".join(parts)}</svg>'
    )


def _rank(kind: tuple[int, str, str]) -> tuple:
    """The baseline first, then by name; the teacher's evaluation last."""
    return kind[0], kind[2].endswith("teacher"), not kind[2].endswith("SFT"), kind[2]


def _reduced(edges: list[tuple]) -> list[tuple]:
    """The edges that no longer path between the same two nodes implies."""
    after: dict[tuple, set[tuple]] = defaultdict(set)
    for a, b in edges:
        after[a].add(b)

    def reaches(start: tuple, goal: tuple) -> bool:
        return any(n == goal or (n[0] < goal[0] and reaches(n, goal)) for n in after[start])

    return [(a, b) for a, b in edges if not any(n != b and n[0] < b[0] and reaches(n, b) for n in after[a])]


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    x0, y0, x1, y1 = start[0] + BOX[0], start[1] + BOX[1] / 2, end[0], end[1] + BOX[1] / 2
    bend = (x1 - x0) / 2
    path = f"M{x0:.0f} {y0:.0f}C{x0 + bend:.0f} {y0:.0f} {x1 - bend:.0f} {y1:.0f} {x1:.0f} {y1:.0f}"
    return f'<path d="{path}" fill="none" stroke="#9aa3ad" stroke-width="1.4"/>'


def _node(at: tuple[float, float], kind: tuple[int, str, str], members, told) -> str:
    known = [m["total_j"] for m in members]
    spent = "unknown energy" if None in known else told(sum(known) / 3.6e6)
    colour = STAGE_COLOURS[kind[1]]
    x, y = at
    paper = 'style="fill:var(--paper,#fff);stroke:var(--line,#c9d0d8)"'
    title = f'font-size="13" font-weight="600" style="fill:var(--ink,#1d2733)">{escape(kind[2])}'
    below = f'font-size="12" style="fill:var(--soft,#55606d)">{len(members)} × · {escape(spent)}'
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="5" {paper}/>'
        f'<rect x="{x:.0f}" y="{y:.0f}" width="6" height="{BOX[1]}" rx="2" fill="{colour}"/>'
        f'<text x="{x + 15:.0f}" y="{y + 19:.0f}" {title}</text>'
        f'<text x="{x + 15:.0f}" y="{y + 36:.0f}" {below}</text>'
    )
