"""The published stages beside the same ones at measured rates: J/token, and N* in energy and in FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import style
from ..style import number

STAGES = {
    "teacher_logits": "Teacher's cache",
    "teacher_generation": "Teacher's answers",
    "reference_logprobs": "Reference's log-probabilities",
    "student_training": "Training",
}
LACKING = "at measured rates: not measured"
PUBLISHED, OURS, FLOPS = "#D55E00", "#0072B2", "#222222"


def draw(works: Sequence[Any], stars: Sequence[Any], text: str, pdf: str | Path, png: str | Path) -> None:
    """Write the figure from ``published.efficiency``'s works and stars, its paragraph below."""
    plt = style.pyplot()
    shown = [w for w in works if w.published_j_per_token is not None and w.pipeline != "sft"]
    unlike = list({(w.stage, w.model): w for w in reversed(shown)}.values())[::-1]  # one J/token a stage and model
    height = 1.2 + 0.34 * len(unlike) + 1.1 + 0.3 * len(stars)
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(style.WIDTH, height), height_ratios=[1 + 0.34 * len(unlike), 0.9 + 0.3 * len(stars)]
    )
    _rates(upper, unlike)
    _stars(lower, stars)
    figure.tight_layout(h_pad=1.4)
    style.footnote(figure, text, lines=14)
    style.save(figure, pdf, png)


def _rates(axes: Any, works: Sequence[Any]) -> None:
    for index, work in enumerate(works):
        axes.plot(work.published_j_per_token, index - 0.16, "s", color=PUBLISHED, ms=6)
        _beside(axes, index - 0.16, work.published_j_per_token, work.published_utilisation)
        if work.ours_j_per_token is None:
            axes.annotate(LACKING, (0.01, index + 0.2), xycoords=("axes fraction", "data"), fontsize=6.8)
            continue
        measured = work.ours_basis.startswith("measured")
        axes.plot([work.ours_low, work.ours_high], [index + 0.2] * 2, color=OURS, lw=2, alpha=0.5)
        axes.plot(work.ours_j_per_token, index + 0.2, "o", color=OURS, ms=6, mfc=OURS if measured else "white")
        _beside(axes, index + 0.2, max(work.ours_high, work.ours_j_per_token), work.ours_utilisation, measured)
    axes.set_yticks(range(len(works)), [f"{STAGES[w.stage]}, {w.model}" for w in works])
    axes.set_ylim(len(works) - 0.4, -0.6)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * 4)  # room for what stands beside the marks
    axes.set_xlabel("J/token (GPU)")
    axes.set_title("Published (squares) and at measured rates (circles; open: extrapolated by FLOPs)")
    axes.grid(axis="x", color="#e8e8e8", lw=0.5)
    axes.tick_params(axis="y", length=0)


def _beside(axes: Any, y: float, x: float, share: float | None, measured: bool = True) -> None:
    text = "" if share is None else f"{share:.1%} of peak FLOP/s"
    axes.annotate(
        text if measured else "extrapolated", (x, y), (7, 0), textcoords="offset points", va="center", fontsize=6.8
    )


def _stars(axes: Any, stars: Sequence[Any]) -> None:
    for index, star in enumerate(stars):
        if star.published is not None:
            axes.plot(star.published, index, "s", color=PUBLISHED, ms=6, label="published" if not index else None)
        if star.flops is not None:
            axes.plot(star.flops, index, "|", color=FLOPS, ms=12, mew=2.2, label="in FLOPs" if not index else None)
        if star.ours is None:
            axes.annotate(
                "at measured rates: not measured",
                (1.01, index),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=6.8,
            )
            continue
        measured = star.ours_basis.startswith("measured")
        axes.plot([star.ours_low, star.ours_high], [index, index], color=OURS, lw=2, alpha=0.5)
        axes.plot(star.ours, index, "o", color=OURS, ms=6, mfc=OURS if measured else "white")
        text = f"{number(star.ours)} ({number(star.ours_low, 2)} to {number(star.ours_high, 2)})"
        text += star.ours_basis.removeprefix("measured") if measured else ", extrapolated"
        axes.annotate(text, (1.01, index), xycoords=("axes fraction", "data"), va="center", fontsize=6.8)
    axes.set_yticks(range(len(stars)), [f"{s.pipeline} {s.student}" for s in stars])
    axes.set_ylim(len(stars) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("N* (reuses)")
    axes.set_title("Break-even: published (squares), in FLOPs (bars), at measured rates (circles)")
    axes.grid(axis="x", color="#e8e8e8", lw=0.5)
    axes.tick_params(axis="y", length=0)
