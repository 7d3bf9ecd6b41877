"""The answer for other tools: LaTeX for a paper, CodeCarbon's columns for whoever reads its ``emissions.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from ..ledger.rows import counts
from .style import energy_unit, number

#: The columns of CodeCarbon's ``emissions.csv`` that a ledger row can fill (kWh, kg, s, kg/s, W), and the hardware.
CODECARBON = (
    "timestamp", "project_name", "run_id", "experiment_id", "duration", "emissions", "emissions_rate", "cpu_power",
    "gpu_power", "ram_power", "cpu_energy", "gpu_energy", "ram_energy", "energy_consumed", "hardware", "tracking_mode",
)  # fmt: skip
_SPECIAL = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"})


def tex(text: str) -> str:
    """A text for LaTeX."""
    return text.replace("\\", r"\textbackslash ").translate(_SPECIAL).replace("·", r"$\cdot$").replace("α", r"$\alpha$")


def latex(summary: Sequence[Mapping[str, Any]]) -> str:
    """The summary as a ``booktabs`` table: energies with half-widths left out, Q, N and N*."""
    views = ("oneoff", "amortised", "marginal", "campaign")
    factor, unit = energy_unit([row[f"e_{view}_kwh"] for row in summary for view in views])
    lines = [
        r"\begin{tabular}{lrrrrrrrr}",
        r"\toprule",
        rf"& seeds & one-off ({unit}) & amortised & marginal & campaign & $Q$ & $N$ & $N^*$ \\",
        r"\midrule",
    ]
    for row in summary:
        energies = ["--" if row[f"e_{v}_kwh"] is None else number(row[f"e_{v}_kwh"] * factor) for v in views]
        quality = "--" if row["q"] is None else f"{row['q']:.3f}"
        star = "--" if row["is_baseline"] else row["n_star_status"]
        if not row["is_baseline"] and row["n_star_status"] == "finite":
            star = number(row["n_star"])
        reuse = "--" if row["n_reuse"] is None else str(row["n_reuse"])
        cells = [tex(row["label"]), str(row["seeds"]), *energies, quality, reuse, star]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def codecarbon(rows: Sequence[Mapping[str, Any]]) -> str:
    """The ledger as CSV with CodeCarbon's columns; an unknown figure is an empty cell, never 0."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CODECARBON, lineterminator="\n")
    writer.writeheader()

    def kwh(joules: float | None) -> float | None:
        return None if joules is None else joules / 3.6e6

    def watts(joules: float | None, seconds: float | None) -> float | None:
        return None if joules is None or not seconds else joules / seconds

    for row in rows:
        if not counts(row):
            continue
        wall, grams = row["wall_s"], row["co2e_g"]
        writer.writerow(
            {
                "timestamp": row["started_utc"],
                "project_name": row["stage"],
                "run_id": f"{row['stage']}/{row['name']}/{row['version']}",
                "experiment_id": row["group"],
                "duration": wall,
                "emissions": None if grams is None else grams / 1000,
                "emissions_rate": None if grams is None or not wall else grams / 1000 / wall,
                "cpu_power": watts(row["cpu_j"], wall),
                "gpu_power": watts(row["gpu_j"], wall),
                "ram_power": watts(row["dram_j"], wall),
                "cpu_energy": kwh(row["cpu_j"]),
                "gpu_energy": kwh(row["gpu_j"]),
                "ram_energy": kwh(row["dram_j"]),
                "energy_consumed": kwh(row["total_j"]),
                "hardware": row["hardware"],
                "tracking_mode": row["source"],
            }
        )
    return text.getvalue()
