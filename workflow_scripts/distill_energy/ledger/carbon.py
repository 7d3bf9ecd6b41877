"""CO2e of the ledger's joules, by the grid that is configured now: joules are the record, grams follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..energy.co2 import co2e

#: Where no country and no number is configured: better than nothing, and said to be no more than that.
WORLD_G_PER_KWH = 475.0
WORLD = "world average (IEA 2019): no country is configured"


def apply_grid(rows: list[dict[str, Any]], energy: Mapping[str, Any] | None) -> None:
    """Set ``co2e_g``, ``pue``, ``intensity_g_per_kwh`` and ``grid_source`` of each row from the configuration's
    ``energy`` section; rows stay as their sidecars say where there is none."""
    if energy is None:
        return
    grid = energy.get("grid") or {}
    given = {"country": grid.get("country"), "region": grid.get("region"), "intensity": grid.get("g_per_kwh")}
    source = grid.get("source")
    if not any(value is not None for value in given.values()):
        given, source = {"intensity": WORLD_G_PER_KWH}, WORLD
    for row in rows:
        found = co2e(row["total_j"], pue=energy.get("pue", 1.0), intensity_source=source, **given)
        row |= {
            "co2e_g": found.g,
            "pue": found.pue,
            "intensity_g_per_kwh": found.intensity_g_per_kwh,
            "grid_source": found.source,
        }
