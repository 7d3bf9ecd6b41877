"""The self-test names what is wrong, and passes what is right."""

import dataclasses

import pytest

from distill_energy.energy import MeterConfig
from distill_energy.energy.selftest import Reading, judge, selftest

from .fakes import Power

GOOD = [
    Reading("idle", 8.0, 80.0, "measured", 0.001, 1.0, ()),
    Reading("constant", 8.0, 680.0, "measured", -0.01, 1.0, ()),
    Reading("square 0.5 s", 8.0, 400.0, "measured", -0.015, 1.0, ()),
    Reading("square 2 s", 8.0, 350.0, "measured", 0.011, 1.0, ()),
]


def test_what_hangs_together_passes():
    assert judge(GOOD) == []


@pytest.mark.parametrize(
    ("number", "change", "words"),
    [
        (1, {"differ": -0.08}, "constant: power and counter differ by -8.0%"),
        (0, {"watts": None, "reason": "no counter"}, "idle: the energy is unknown (no counter)"),
        (2, {"coverage": 0.6}, "square 0.5 s: only 60% of the window"),
        (3, {"flags": ("gap",)}, "square 2 s: flagged gap"),
        (1, {"watts": 82.0}, "the load is not seen"),
        (2, {"watts": 660.0}, "square 0.5 s: 660.0 W on average, about 380.0 expected"),
    ],
)
def test_what_does_not_is_named(number, change, words):
    readings = list(GOOD)
    readings[number] = dataclasses.replace(readings[number], **change)
    found = judge(readings)
    assert any(words in line for line in found), found


def test_on_a_card_whose_power_no_load_moves(gpus):
    """A simulated card at 300 W: counter and power agree, and that the load is not seen is said."""
    gpus.add(Power("const", 300.0))
    lines = []
    found = selftest(MeterConfig(0.05, cpu="off"), 0.6, lines.append)
    assert found == ["a constant load draws 300.0 W, idling 300.0: the load is not seen"] or (
        len(found) == 1 and "the load is not seen" in found[0]
    )
    assert len(lines) == 6 and all("measured" in line for line in lines[2:])
