"""``results/paper/``: the published table's figures and N* table, ours and theirs side by side."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path
from typing import Any

from ..answer.aggregate import write_summary_csv
from ..published.replay import replay
from ..store.atomic import replacing
from .figures import amortization, pareto, stage_breakdown
from .figures import comparison as side_by_side

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
    with replacing(out / "comparison.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(comparison[0]) if comparison else ["quantity"])
        writer.writeheader()
        writer.writerows(comparison)
    return comparison
