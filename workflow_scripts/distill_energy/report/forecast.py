"""The forecast as text, table and figure: what the ``forecast`` rule and command call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..answer.aggregate import read_ledger
from ..answer.breakeven import whole_reuses
from ..answer.labels import pipeline_name
from ..errors import UserError
from ..forecast.forecast import Forecast, plan_forecast
from ..forecast.rates import Rates, read_rates
from .figures import forecast as figure
from .figures.forecast import _time
from .sentences import energy
from .style import number


def make(
    config: Any,
    root: str | Path = "results",
    *,
    preset_name: str | None = None,
    earlier: str | Path | None = None,
    ledger: str | Path | None = None,
    rates: str | Path | None = None,
) -> Forecast:
    """The forecast of a ``Config``. ``earlier``: a ledger of other runs to learn from; ``ledger``: this run's own, to
    put beside the forecast (never learnt from); ``rates``: a file of measured rates, or a preset's name."""

    def rows(path: str | Path | None):
        if path is None:
            return None
        if not Path(path).is_file():
            raise UserError(f"{path}: no such ledger")
        return read_ledger(path)[0]

    found = None if rates is None else Rates(read_rates(rates), f"rates {Path(rates).name}")
    return plan_forecast(config, root, preset_name=preset_name, earlier=rows(earlier), done=rows(ledger), rates=found)


def write(result: Forecast, pdf: str | Path, png: str | Path, csv_path: str | Path | None = None) -> None:
    """Write the figure and, if asked, the table of stages."""
    figure.draw(result, pdf, png)
    if csv_path is not None:
        import csv

        from ..store.atomic import replacing

        with replacing(csv_path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(result.stages[0]) if result.stages else ["stage"])
            writer.writeheader()
            writer.writerows(result.stages)


def size(count: float) -> str:
    """Bytes for a reader."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= factor:
            return f"{number(count / factor)} {unit}"
    return f"{number(count / 1e3)} kB"


def _whole(value: float | None) -> str:
    whole = whole_reuses(value)
    return "never" if whole is None else str(whole)


def lines(result: Forecast) -> list[str]:
    """The forecast as lines of text."""
    found = [f"Basis: {result.basis}. Intervals hold 90 % of the draws.", ""]
    for row in result.stages:
        text = f"{row['stage']:20} {row['executions']:5} ×  {energy(row['likely_kwh'])}"
        text += f" ({energy(row['low_kwh'])} to {energy(row['high_kwh'])}), {_time(row['likely_seconds'])}"
        text += f", {size(row['likely_bytes'])}"
        if row["likely_co2e_g"] is not None:
            text += f", {number(row['likely_co2e_g'])} g CO2e"
        if row["measured_kwh"] is not None:
            text += f"; measured {energy(row['measured_kwh'])}"
        found.append(text)
    if result.break_even:
        found.append("")
    for row in result.break_even:
        star, low, high = (_whole(row[key]) for key in ("n_star", "n_star_low", "n_star_high"))
        name = f"{pipeline_name(row['pipeline'])} for the {row['student']} student on {row['dataset']}"
        found.append(
            f"{name} would pay back after {star} reuses ({low} to {high});"
            f" the plan has {row['planned_n']} (saving: {row['saving']})"
        )
    if result.unknown:
        reasons: dict[str, list[str]] = {}
        for item in result.unknown:
            name, _, why = item.partition(": ")
            reasons.setdefault(why, []).append(name)
        more = {why: f" and {len(names) - 1} more" if len(names) > 1 else "" for why, names in reasons.items()}
        found += ["", *(f"not forecast: {names[0]}{more[why]}: {why}" for why, names in reasons.items())]
    return found
