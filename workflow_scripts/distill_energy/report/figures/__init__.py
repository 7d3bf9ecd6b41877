"""Figures, one file each: ``draw(rows, pdf, png)``, rows being the summary's, or the ledger's or those of
``where_it_went.parquet`` where ``NEEDS`` says so."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

#: Every figure of a finished run, in the order of the page.
NAMES = ("pareto", "stage_breakdown", "where_it_went", "amortization", "trajectories", "sweep", "power")


def render(name: str, ledger: str | Path, summary: str | Path, pdf: str | Path, png: str | Path) -> None:
    """Draw the figure ``name`` from the written ledger and summary: what each figure's rule calls."""
    from ...answer.aggregate import read_ledger, read_summary

    module = import_module(f".{name}", __name__)
    needs = getattr(module, "NEEDS", "summary")
    if needs == "places":
        rows = read_summary(Path(ledger).with_name("where_it_went.parquet"))
    else:
        rows = read_ledger(ledger)[0] if needs == "ledger" else read_summary(summary)
    module.draw(rows, pdf, png)
