"""``results/paper/``: the published table's figures and N* table, ours and theirs side by side."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..answer.aggregate import write_summary_csv
from ..published.efficiency import Star, Work, as_rows, efficiency, paragraph, shipped
from ..published.replay import read_table, replay
from ..store.atomic import replacing
from .figures import amortization, pareto, stage_breakdown
from .figures import comparison as side_by_side
from .figures import efficiency as figure
from .style import number

DRAWN = ("pareto", "stage_breakdown", "amortization", "comparison")
FILES = (*(f"{name}.{kind}" for name in DRAWN for kind in ("pdf", "png", "svg")), "comparison.csv", "summary.csv")


def write_paper(table: str | Path, out: str | Path) -> list[dict[str, Any]]:
    """Write ``FILES`` into ``out`` from the published table and return the comparison rows."""
    out = Path(out)
    with tempfile.TemporaryDirectory() as work:
        _, summary, comparison = replay(table, work)
    for module in (pareto, stage_breakdown, amortization):
        name = module.__name__.rpartition(".")[2]
        module.draw(summary, out / f"{name}.pdf", out / f"{name}.png")
    side_by_side.draw(comparison, out / "comparison.pdf", out / "comparison.png")
    write_summary_csv(out / "summary.csv", summary)
    _write_csv(out / "comparison.csv", comparison, "quantity")
    published = read_table(table)
    if "efficiency" in published:
        write_efficiency(published, out)
    return comparison


def write_efficiency(table: Mapping[str, Any], out: Path, rates: Sequence[Mapping[str, Any]] | None = None) -> str:
    """The published stages beside the same ones at measured rates (the shipped ones): figure, tables and a paragraph,
    which is returned."""
    works, stars = efficiency(table, shipped() if rates is None else rates)
    text = paragraph(works, stars)
    figure.draw(works, stars, text, out / "efficiency.pdf", out / "efficiency.png")
    _write_csv(out / "efficiency.csv", as_rows(works), "stage")
    _write_csv(out / "efficiency_n_star.csv", as_rows(stars), "pipeline")
    with replacing(out / "efficiency.md") as temporary:
        Path(temporary).write_text("\n".join(_page(works, stars, text)), encoding="utf-8")
    return text


def _page(works: Sequence[Work], stars: Sequence[Star], text: str) -> list[str]:
    """The tables as Markdown."""
    lines = ["# Distillation and utilisation", "", text, ""]
    lines += [
        "| stage | pipeline | model | published kWh | tokens (M) | J/token | of peak | J/token at measured rates |"
    ]
    lines[-1] += " of peak | kWh | what that is |"
    lines += ["|" + " --- |" * 11]
    for w in works:
        span = "" if w.ours_low is None or w.ours_low == w.ours_high else f" ({_n(w.ours_low)} to {_n(w.ours_high)})"
        cells = [w.stage, w.pipeline, w.model, f"{w.published_kwh:.2f}", _n(w.tokens and w.tokens / 1e6)]
        cells += [_n(w.published_j_per_token), _percent(w.published_utilisation), _n(w.ours_j_per_token) + span]
        cells += [_percent(w.ours_utilisation), _n(w.ours_kwh), w.ours_basis]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| pipeline | student | N* published | N* in FLOPs | N* at measured rates | what that is |"]
    lines += ["|" + " --- |" * 6]
    for s in stars:
        span = "" if s.ours_low is None else f" ({_n(s.ours_low)} to {_n(s.ours_high)})"
        cells = [s.pipeline, s.student, _n(s.published), _n(s.flops), _n(s.ours) + span, s.ours_basis]
        lines.append(f"| {' | '.join(cells)} |")
    basis = sorted({f"{w.stage} {w.pipeline} {w.model}: {w.tokens_basis}" for w in works})
    return [*lines, "", "Tokens: " + "; ".join(basis) + ".", ""]


def _n(value: float | None) -> str:
    return number(value).replace("\u202f", ",")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]], first: str) -> None:
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]) if rows else [first])
        writer.writeheader()
        writer.writerows(rows)
