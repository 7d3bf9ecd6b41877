"""Grams of CO2e of a joule: E × PUE × grid intensity, from CodeCarbon's packaged tables. No network."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..store.sidecar import Co2e

KWH = 3.6e6  # J
LBS_PER_MWH = 0.45359237  # g/kWh
_NORDIC = {"SWE": "SE", "NOR": "NO", "FIN": "FI"}
_FOLDER = "data/private_infra"


def co2e(
    gross_j: float | None,
    pue: float = 1.0,
    country: str | None = None,
    region: str | None = None,
    intensity: float | None = None,
    intensity_source: str | None = None,
) -> Co2e:
    """CO2e of ``gross_j`` joules. A number (``intensity``, g/kWh) wins over a country (ISO 3166 alpha-3).

    Raises UserError naming a country or region that the table lacks, and a PUE below 1.
    """
    if not (math.isfinite(pue) and pue >= 1):
        raise UserError(f"energy.pue is {pue}: power usage effectiveness is at least 1")
    place = None
    if intensity is not None:
        if not (math.isfinite(intensity) and intensity >= 0):
            raise UserError(f"energy.grid.g_per_kwh is {intensity}: a number of at least 0")
        value, source = float(intensity), intensity_source or "given in the configuration"
        place = region or country
    elif country is not None:
        value, source = grid_intensity(country, region)
        place = f"{country.upper()}/{region}" if region else country.upper()
    elif region is not None:
        raise UserError(f"energy.grid.region is {region!r} without a country")
    else:
        return Co2e(pue=pue, reason="no country and no grid intensity are configured (energy.grid)")
    known = dict(pue=pue, intensity_g_per_kwh=value, region=place, source=source)
    if gross_j is None:
        return Co2e(**known, reason="the energy is unknown")
    return Co2e(g=gross_j / KWH * pue * value, **known)


def grid_intensity(country: str, region: str | None = None) -> tuple[float, str]:
    """g CO2e per kWh and where the number is from. Raises UserError naming what the table lacks."""
    code = country.strip().upper()
    table = _table("global_energy_mix.json")
    if code not in table:
        raise UserError(
            f"energy.grid.country is {country!r}: no ISO 3166 alpha-3 code in CodeCarbon's table (e.g. FRA)"
        )
    if region is None:
        row = table[code]
        return float(row["carbon_intensity"]), f"{_origin()}, global_energy_mix.json, {code}, {row['year']}"
    return _regional(code, region.strip())


def _regional(code: str, region: str) -> tuple[float, str]:
    unknown = UserError(f"energy.grid.region is {region!r}: CodeCarbon's table has no such region of {code}")
    if code == "USA":
        table = _table("2023/usa_emissions.json")
        row = table.get(region.lower()) if not region.startswith("_") else None
        if row is None:
            raise unknown
        return row["emissions"] * LBS_PER_MWH, f"{_origin()}, usa_emissions.json, {region}, {table['_source']['year']}"
    if code == "CHN":
        for row in _table("2023/china_provincial_emissions.json")["data"].values():
            if region.lower() in row["names"]:
                return float(
                    row["emission_factor"]
                ), f"{_origin()}, china_provincial_emissions.json, {region}, {row['year']}"
        raise unknown
    if code in _NORDIC and region.upper().startswith(_NORDIC[code]):
        row = _table("nordic_emissions.json")["data"].get(region.upper())
        if row is None:
            raise unknown
        return float(row["emission_factor"]), f"{_origin()}, nordic_emissions.json, {region.upper()}, {row['year']}"
    if code == "CAN":
        mixes = _table("2023/canada_energy_mix.json")
        if region.lower() not in mixes:
            raise unknown
        return _canada(region.lower()), f"{_origin()}, canada_energy_mix.json, {region}, 2023"
    raise unknown


def load_codecarbon() -> None:
    """Import CodeCarbon in silence: it imports ``amdsmi``, which prints where it finds no ROCm."""
    with contextlib.redirect_stdout(io.StringIO()):
        import codecarbon  # noqa: F401


def _canada(region: str) -> float:
    """CodeCarbon weighs a province's mix with an intensity per source: its own code does that."""
    load_codecarbon()
    from codecarbon.core.emissions import Emissions
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata
    from codecarbon.input import DataSource

    place = GeoMetadata(country_iso_code="CAN", country_name="Canada", region=region)
    return 1000 * Emissions(DataSource()).get_region_emissions(Energy.from_energy(kWh=1), place)


@cache
def _table(name: str) -> dict[str, Any]:
    spec = importlib.util.find_spec("codecarbon")
    if spec is None or spec.origin is None:
        raise UserError("energy.grid.country needs the package codecarbon (its table), or give energy.grid.g_per_kwh")
    path = Path(spec.origin).parent / _FOLDER / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: CodeCarbon's table cannot be read ({error.strerror})") from None


def _origin() -> str:
    return f"codecarbon {importlib.metadata.version('codecarbon')}"
