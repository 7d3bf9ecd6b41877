"""CO2e from packaged tables only."""

from __future__ import annotations

import socket

import pytest

from distill_energy.energy import co2e
from distill_energy.energy.co2 import grid_intensity
from distill_energy.errors import UserError

KWH = 3.6e6


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_country():
    found = co2e(2 * KWH, pue=1.5, country="fra")
    assert found.g == pytest.approx(2 * 1.5 * found.intensity_g_per_kwh)
    assert found.region == "FRA" and found.pue == 1.5
    assert "codecarbon" in found.source and "global_energy_mix" in found.source
    assert 20 < found.intensity_g_per_kwh < 100


def test_number_with_its_source():
    found = co2e(KWH, intensity=123.0, intensity_source="utility's bill, 2026")
    assert (found.g, found.intensity_g_per_kwh, found.source) == (123.0, 123.0, "utility's bill, 2026")
    assert co2e(KWH, intensity=0.0).g == 0.0


def test_regions():
    assert grid_intensity("USA", "California")[0] < grid_intensity("USA", "Wyoming")[0]
    assert grid_intensity("CHN", "beijing")[0] == pytest.approx(555.4)
    assert grid_intensity("SWE", "SE1")[0] < 50
    # British Columbia: 86.8% hydro, 2.8% gas, 6.7% biomass
    assert 0 < grid_intensity("CAN", "British Columbia")[0] < grid_intensity("CAN", "Alberta")[0]


@pytest.mark.parametrize("place", [dict(country="ZZZ"), dict(country="France"), dict(country="USA", region="Bavaria")])
def test_unknown_place_is_named(place):
    with pytest.raises(UserError, match=place.get("region") or place["country"]):
        co2e(KWH, **place)


@pytest.mark.parametrize("bad", [dict(pue=0.9), dict(pue=float("nan")), dict(intensity=-1.0), dict(region="SE1")])
def test_bad_numbers(bad):
    with pytest.raises(UserError, match=r"energy\."):
        co2e(KWH, **bad)


def test_unknown_is_null_with_a_reason():
    assert co2e(KWH).g is None and "grid" in co2e(KWH).reason
    lost = co2e(None, country="FRA")
    assert lost.g is None and lost.reason and lost.intensity_g_per_kwh > 0
