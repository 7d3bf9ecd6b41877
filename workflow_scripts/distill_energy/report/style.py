"""One look for every figure: Okabe–Ito colours that also differ in grey, markers, hatches, units, label placement."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.patheffects import withStroke

from ..store.atomic import replacing

#: Pipeline → colour, marker. Luminances differ, so that the figures can be read in grey.
PIPELINES = {
    "sft": ("#222222", "o"),
    "kd": ("#0072B2", "s"),
    "synthetic": ("#E69F00", "^"),
}
SPARE = [("#009E73", "D"), ("#CC79A7", "v"), ("#56B4E9", "P"), ("#D55E00", "X"), ("#F0E442", "*")]
#: Part of E_total → colour, from dark to light.
PARTS = {
    "prerun": ("#999999", "Prerun"),
    "preprocess": ("#332288", "Preprocess"),
    "teacher": ("#D55E00", "Teacher"),
    "student": ("#56B4E9", "Student training"),
    "evaluation": ("#F0E442", "Evaluation"),
}
STAGE_COLOURS = {
    "prerun": PARTS["prerun"][0],
    "preprocess": PARTS["preprocess"][0],
    "teacher_logits": PARTS["teacher"][0],
    "teacher_generation": "#AA4499",
    "reference_logprobs": "#882255",
    "student_training": PARTS["student"][0],
    "contamination": "#88CCEE",
    "evaluation": "#B8A900",
}
WIDTH = 7.2  # inches: a text block


def pyplot():
    """pyplot with the Agg backend and the project's settings."""
    matplotlib.use("Agg")

    plt.rcParams.update(
        {
            "font.family": "DejaVu Sans",
            "font.size": 8.5,
            "axes.titlesize": 9.5,
            "axes.titlelocation": "left",
            "axes.labelsize": 8.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.7,
            "axes.axisbelow": True,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "hatch.linewidth": 0.5,
            "pdf.fonttype": 42,
            "svg.hashsalt": "distill-energy",  # the same names inside for the same data
            "savefig.dpi": 200,
            "figure.dpi": 100,
        }
    )
    return plt


def pipeline_style(pipeline: str, every: Sequence[str]) -> tuple[str, str]:
    """(colour, marker) of a pipeline; unknown ones take the spare ones in the order of ``every``."""
    if pipeline in PIPELINES:
        return PIPELINES[pipeline]
    others = [p for p in dict.fromkeys(every) if p not in PIPELINES]
    return SPARE[others.index(pipeline) % len(SPARE)]


def energy_unit(values_kwh: Sequence[float | None]) -> tuple[float, str]:
    """(factor from kWh, unit) so that the largest value reads well."""
    top = max((v for v in values_kwh if v is not None), default=0.0)
    return (1.0, "kWh") if top >= 0.5 else (1e3, "Wh") if top >= 5e-4 else (1e6, "mWh")


def number(value: float | None, digits: int = 3) -> str:
    """A number for a reader: ``digits`` significant ones, thousands separated, no exponent."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{float(f'{value:.{digits}g}'):,.0f}".replace(",", "\u202f")
    text = f"{value:#.{digits}g}"
    if "e" in text:
        text = f"{value:.12f}".rstrip("0")[: text.index("e") + 12]
    return text.rstrip(".")


def footnote(figure: Any, text: str, gap: float = 4, lines: int = 6, width: int = 125) -> None:
    """Small text below everything that is drawn, left-aligned with it. Call it last."""
    if not text:
        return
    figure.canvas.draw()
    box = figure.get_tightbbox(figure.canvas.get_renderer())  # inches
    wide, high = figure.get_size_inches()
    figure.text(
        max(box.x0, 0) / wide,
        (box.y0 - gap / 72) / high,
        "\n".join(textwrap.wrap(text, width)[:lines]),
        fontsize=7,
        color="#444444",
        va="top",
    )


#: What an SVG says of itself where there was nothing to draw, so that the page leaves it out.
NOTHING = "nothing to draw: "


def save(figure: Any, pdf: str | Path, png: str | Path, description: str | None = None) -> None:
    """Write the figure as PDF and PNG, and as SVG beside the PNG, each atomically, and close it. No dates inside: same
    data, same bytes."""
    metadata = {
        "pdf": {"CreationDate": None},
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None, "Description": description},
    }
    for path, kind in ((pdf, "pdf"), (png, "png"), (Path(png).with_suffix(".svg"), "svg")):
        with replacing(path) as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata[kind], bbox_inches="tight", pad_inches=0.06)
    plt.close(figure)


def place_labels(
    axes: Any, labels: Sequence[tuple[float, float, str, Any]], size: float = 7.5, lines=(), points=()
) -> None:
    """Write each (x, y, text, colour) near its point where it overlaps no other label, no marker and no border.

    Greedy over a ring of candidate offsets (points); where none is free the one with the least overlap, with a leader
    line if it lies far out. ``lines``: polylines [(x, y), …] in data units, and ``points``: further markers, that are
    better not covered. Call it when the limits are final.
    """
    figure = axes.figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    scale = figure.dpi / 72
    frame = axes.get_window_extent(renderer)
    dots = [tuple(axes.transData.transform((x, y))) for x, y, *_ in labels]
    half = 4.5 * scale  # of a marker
    places = [*dots, *(axes.transData.transform(point) for point in points)]
    markers = {(x - half, y - half, x + half, y + half) for x, y in places}
    crossings = [p for line in lines for p in _along(axes.transData.transform(line), 2 * scale)]
    taken: list[tuple[float, float, float, float]] = []
    for (x, y, text, colour), dot in zip(labels, dots, strict=False):
        probe = axes.text(0, 0, text, fontsize=size)
        box = probe.get_window_extent(renderer)
        probe.remove()
        width, height = box.width, box.height
        best = None
        for rank, (dx, dy, ha, va) in enumerate(_candidates()):
            left = dot[0] + dx * scale - {"left": 0, "center": width / 2, "right": width}[ha]
            bottom = dot[1] + dy * scale - {"bottom": 0, "center": height / 2, "top": height}[va]
            area = (left, bottom, left + width, bottom + height)
            cost = rank * 0.01 * height * height
            cost += 2 * sum(_overlap(area, other) for other in taken)
            cost += 4 * sum(_overlap(area, marker) for marker in markers)
            if _far(dx, dy):  # a leader line will cross whatever lies on its way
                way = list(_along([dot, (dot[0] + dx * scale, dot[1] + dy * scale)], 3 * scale))
                cost += 4 * height * sum(_inside(p, other) for p in way for other in taken)
            cost += 2 * height * sum(_inside(p, area) for p in crossings)
            inside = _overlap(area, (frame.x0, frame.y0, frame.x1, frame.y1))
            cost += 4 * (width * height - inside)
            if best is None or cost < best[0]:
                best = (cost, dx, dy, ha, va, area)
        _, dx, dy, ha, va, area = best
        taken.append(area)
        arrow = {"arrowstyle": "-", "lw": 0.5, "color": colour, "shrinkB": 3, "shrinkA": 0} if _far(dx, dy) else None
        note = axes.annotate(
            text,
            (x, y),
            (dx, dy),
            textcoords="offset points",
            ha=ha,
            va=va,
            fontsize=size,
            color=colour,
            zorder=6,
            arrowprops=arrow,
        )
        note.set_path_effects([withStroke(linewidth=1.8, foreground="white")])


def _far(dx: float, dy: float) -> bool:
    return math.hypot(dx, dy) > 20


def _candidates():
    """(dx, dy, horizontal, vertical alignment) in rings of 16 directions, the nearest first."""
    for radius in (7, 11, 16, 22, 30, 40, 54):
        for turn in (0, 1, -1, 2, -2, 8, 7, -7, 6, -6, 4, -4, 3, -3, 5, -5):
            angle = turn * math.pi / 8
            dx, dy = radius * math.cos(angle), radius * math.sin(angle)
            sideways = "center" if abs(turn) == 4 else "left" if abs(turn) < 4 else "right"
            upright = "center" if turn in (0, 8) else "bottom" if turn > 0 else "top"
            yield dx, dy, sideways, upright


def _along(points, step: float):
    """Points every ``step`` pixels along a polyline."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        count = max(1, int(math.hypot(x1 - x0, y1 - y0) / step))
        for i in range(count + 1):
            yield x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count


def _inside(point, area) -> bool:
    return area[0] <= point[0] <= area[2] and area[1] <= point[1] <= area[3]


def _overlap(a, b) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def darker(colour: str, by: float = 0.75) -> tuple[float, float, float]:
    """The colour with its channels scaled, for text on white."""
    return tuple(c * by for c in to_rgb(colour))


def nothing(message: str, pdf: str | Path, png: str | Path) -> None:
    """A figure that says why there is nothing to draw: a target must exist, and must not mislead."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(WIDTH, 1.6))
    axes.axis("off")
    axes.text(0.5, 0.5, message, ha="center", va="center", wrap=True)
    save(figure, pdf, png, NOTHING + message)


def drawn(svg: str) -> tuple[bool, str]:
    """(whether there was anything to draw, else why not) of a figure's SVG text."""
    head = svg[:4000]
    at = head.find(NOTHING)
    return (True, "") if at < 0 else (False, head[at + len(NOTHING) : head.index("<", at)])
