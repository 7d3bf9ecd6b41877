"""The intervals hold the truth as often as docs/accounting.md says: a few hundred drawn studies of each design."""

import importlib.util

import pytest


@pytest.fixture(scope="module")
def simulation(repo):
    spec = importlib.util.spec_from_file_location("coverage_benchmark", repo / "benchmarks" / "coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def percent(text):
    return float(text.split("±")[0])


@pytest.mark.parametrize(
    ("kind", "seeds", "meter", "energy", "star"),
    [
        ("normal", 2, 0.0, 92, 92),
        ("normal", 3, 0.1, 92, 92),  # errors of the meter of every stage are in E, and cancel in N*
        ("normal", 2, 0.2, 92, 92),
        ("paired, chosen", 2, 0.0, 92, 92),
        ("skewed", 3, 0.0, 87, 92),
    ],
)
def test_energy_and_n_star(simulation, kind, seeds, meter, energy, star):
    found = [percent(text) for text in simulation.training(kind, seeds, meter, 400)]
    assert found[0] >= energy and found[1] >= star


def test_pairing_decides_what_very_few_seeds_leave_open(simulation):
    apart, chosen = (percent(simulation.training(kind, 2, 0.0, 400)[2]) for kind in ("paired", "paired, chosen"))
    assert chosen > 95 > 90 > apart


def test_what_is_said_to_be_not_covered_is_not(simulation):
    assert percent(simulation.training("correlated", 5, 0.0, 400)[0]) < 70


@pytest.mark.parametrize("regime", [(300.0, 0.05, 0.20), (300.0, 0.19, 0.20), (-300.0, 0.20, 0.15)])
def test_t_star(simulation, regime):
    assert percent(simulation.serving(*regime, 3, 400)) >= 95
