"""CO2e of the ledger's joules, by the grid that is configured now: joules are the record, grams follow from them."""

from __future__ import annotations

import csv
import datetime as dt
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..energy.co2 import co2e
from ..errors import UserError
from ..store import bounded
from ..store.sidecar import POWER_NAME
from .electricity_maps import Hours, Unanswered, hour_of

#: Where no country and no number is configured: better than nothing, and said to be no more than that.
WORLD_G_PER_KWH = 475.0
WORLD = "world average (IEA 2019): no country is configured"


@dataclass(frozen=True)
class Series:
    """A grid's intensity over time: ``g_per_kwh[i]`` from ``starts[i]`` (Unix seconds, ascending) to the next; the last
    interval is as long as the one before it."""

    starts: np.ndarray
    g_per_kwh: np.ndarray
    source: str

    @property
    def end(self) -> float:
        step = self.starts[-1] - self.starts[-2] if len(self.starts) > 1 else 3600.0
        return float(self.starts[-1] + step)

    def mean(self, times: Sequence[float], joules: Sequence[float]) -> float | None:
        """Mean intensity, weighted by the joules spent at each time; None where the series does not cover them."""
        t, weight = np.asarray(times, float), np.asarray(joules, float)
        if not len(t) or t.min() < self.starts[0] or t.max() > self.end:
            return None
        values = self.g_per_kwh[np.searchsorted(self.starts, t, side="right") - 1]
        return float(np.average(values, weights=weight)) if weight.sum() > 0 else float(values.mean())


def read_series(path: str | Path) -> Series:
    """A series from CSV. Raises UserError naming the file and the row."""
    starts, values = [], []
    try:
        with open(Path(path).expanduser(), encoding="utf-8-sig", newline="") as handle:
            for number, row in enumerate(csv.DictReader(handle), 2):
                try:
                    when = dt.datetime.fromisoformat((row["utc"] or "").strip())
                    value = float(row["g_per_kwh"])
                except (KeyError, ValueError, TypeError) as error:
                    raise UserError(f"{path}, line {number}: not a time and a number ({error})") from None
                if not math.isfinite(value) or value < 0:
                    raise UserError(f"{path}, line {number}: g_per_kwh is {value}")
                starts.append((when if when.tzinfo else when.replace(tzinfo=dt.UTC)).timestamp())
                values.append(value)
                if len(starts) > 1 and starts[-1] <= starts[-2]:
                    raise UserError(f"{path}, line {number}: its time is not after the one before")
    except OSError as error:
        raise UserError(f"energy.grid.series: {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"energy.grid.series: {path}: not UTF-8") from None
    if not starts:
        raise UserError(f"energy.grid.series: {path}: holds no row (columns utc, g_per_kwh)")
    return Series(np.array(starts), np.array(values), f"time series {Path(path).name}")


def spent_over_time(folder: str | Path) -> tuple[list[float], list[float]]:
    """(Unix seconds, relative weights) of when an artifact's joules were spent, from its power trace: counters'
    differences, else watts by time. Empty where there is no trace."""
    try:
        bounded.check(Path(folder) / POWER_NAME)
        table = pq.read_table(Path(folder) / POWER_NAME)
    except (OSError, pa.ArrowException):
        return [], []
    found: dict[tuple, list[tuple]] = {}
    for row in table.to_pylist():
        if row["utc"] is not None and row.get("component") != "node":  # its parts are there already
            found.setdefault((row["attempt"], row["device"]), []).append(row)
    times, weights = [], []
    for rows in found.values():
        rows.sort(key=lambda row: row["utc"])
        for before, after in itertools.pairwise(rows):
            t0, t1 = before["utc"].timestamp(), after["utc"].timestamp()
            joules = None
            if before["counter_j"] is not None and after["counter_j"] is not None:
                joules = after["counter_j"] - before["counter_j"]
            if (joules is None or joules < 0) and after["watts"] is not None:
                joules = after["watts"] * (t1 - t0)
            if joules is not None and joules >= 0:
                times.append((t0 + t1) / 2)
                weights.append(joules)
    return times, weights


def apply_grid(
    rows: list[dict[str, Any]], energy: Mapping[str, Any] | None, kept: str | Path | None = None, ask: bool = False
) -> None:
    """Set ``co2e_g``, ``pue``, ``intensity_g_per_kwh`` and ``grid_source`` of each row from the configuration's
    ``energy`` section; rows stay as their sidecars say where there is none. By a series a row whose joules it does not
    cover has no grams, for the reason in ``grid_source``. Hours of Electricity Maps lie in the folder ``kept``; with
    ``ask`` those that are missing are asked for. A row without falls back, and ``grid_source`` says why.
    """
    if energy is None:
        return
    grid = energy.get("grid") or {}
    given = {"country": grid.get("country"), "region": grid.get("region"), "intensity": grid.get("g_per_kwh")}
    source = grid.get("source")
    series = read_series(grid["series"]) if grid.get("series") else None
    if series is None and not any(value is not None for value in given.values()):
        given, source = {"intensity": WORLD_G_PER_KWH}, WORLD
    service = _Service(grid.get("electricity_maps"), kept, rows, ask)
    fallback = (given, source)
    for row in rows:
        given, source = fallback
        if service.zone:
            mean, said = service.mean(row["path"])
            if mean is not None:
                given, source = {"intensity": mean}, said
        elif series is not None:
            mean = series.mean(*spent_over_time(row["path"])) if row["path"] else None
            if mean is None:
                why = f"{series.source} does not cover when it ran"
                row |= {"co2e_g": None, "pue": energy.get("pue", 1.0), "intensity_g_per_kwh": None, "grid_source": why}
                continue
            given, source = {"intensity": mean}, series.source
        found = co2e(row["total_j"], pue=energy.get("pue", 1.0), intensity_source=source, **given)
        if service.zone and said is not source:
            found = found.model_copy(update={"source": f"{found.source} ({said})"})
        row |= {
            "co2e_g": found.g,
            "pue": found.pue,
            "intensity_g_per_kwh": found.intensity_g_per_kwh,
            "grid_source": found.source,
        }


class _Service:
    """Electricity Maps for the rows of a ledger. One refusal is enough: it is not asked again for each row."""

    def __init__(self, zone: str | None, kept: str | Path | None, rows: Sequence[Mapping[str, Any]], ask: bool) -> None:
        self.zone, self.refused = zone, None
        if not zone:
            return
        self.hours = Hours(zone, kept if kept is not None else ".")
        self.spent = {row["path"]: spent_over_time(row["path"]) if row["path"] else ([], []) for row in rows}
        if ask:
            try:
                self.hours.fetch(hour_of(t) for times, _ in self.spent.values() for t in times)
            except Unanswered as error:
                self.refused = str(error)

    def mean(self, path: str | None) -> tuple[float | None, str]:
        """(g/kWh, source), or (None, why not)."""
        try:
            return self.hours.mean(*self.spent[path])
        except Unanswered as error:
            why = self.refused if self.refused and self.spent[path][0] else error
            return None, f"Electricity Maps, {self.zone}: {why}"
