"""Figures, one file each: ``draw(rows, pdf, png)``, rows being the summary's, or the ledger's where ``NEEDS`` says
so."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

#: Every figure of a finished run, in the order of the page.
NAMES = ("pareto", "stage_breakdown", "amortization", "trajectories", "sweep", "power")


def render(name: str, ledger: str | Path, summary: str | Path, pdf: str | Path, png: str | Path) -> None:
    """Draw the figure ``name`` from the written ledger and summary: what each figure's rule calls."""
    from ...answer.aggregate import read_ledger, read_summary

    module = import_module(f".{name}", __name__)
    rows = read_ledger(ledger)[0] if getattr(module, "NEEDS", "summary") == "ledger" else read_summary(summary)
    module.draw(rows, pdf, png)
