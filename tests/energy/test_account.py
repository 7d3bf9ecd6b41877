"""Readings to joules, against integrals that are known exactly."""

from __future__ import annotations

import csv
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_energy.energy import account

from .fakes import Power

H = 0.5


def samples_of(power: Power, times, counter=True, watts=True, value=None):
    """Readings of an ideal device: counter in mJ as an integer, power in W."""
    value = value or {"const": lambda t: power.a, "linear": lambda t: power.a + power.b * t}.get(
        power.kind, lambda t: power.a if math.fmod(t, power.c) < power.c / 2 else power.b
    )
    return [(t, int(1e3 * power.energy(t)) if counter else None, value(t) if watts else None) for t in times]


def beats(seconds: float, h: float = H):
    return [k * h for k in range(round(seconds / h) + 1)]


@pytest.mark.parametrize("power", [Power("const", 412.0), Power("linear", 100.0, 3.7), Power("linear", 700.0, -0.9)])
def test_power_integral_of_constant_and_linear_is_exact(power):
    result = account.gpu_energy(samples_of(power, beats(600), counter=False), H)
    assert result.method == "nvml_power_integral"
    assert result.gross_j == pytest.approx(power.energy(600), rel=1e-9)


def test_irregular_beats_do_not_bend_a_linear_trace():
    rng = random.Random(1)
    times = [0.0, *itertools.accumulate(rng.uniform(0.1, 1.2) for _ in range(1000))]
    power = Power("linear", 50.0, 0.31)
    result = account.gpu_energy(samples_of(power, times, counter=False), H)
    assert result.gross_j == pytest.approx(power.energy(times[-1]), rel=1e-9)


@pytest.mark.parametrize("dwell", [5.0, 7.3, 20.0])
def test_steps_within_half_a_percent_and_within_the_bound(dwell):
    power = Power("square", 100.0, 700.0, 2 * dwell)
    times = [t + 0.137 for t in beats(600)]
    truth = power.energy(times[-1]) - power.energy(times[0])
    result = account.gpu_energy(samples_of(power, times, counter=False), H)
    assert result.gross_j == pytest.approx(truth, rel=0.005)
    assert abs(result.gross_j - truth) <= result.error_j


def test_counter_is_exact_whatever_the_load_does():
    power = Power("square", 100.0, 700.0, 0.31)
    result = account.gpu_energy(samples_of(power, beats(600)), H)
    assert result.method == "nvml_counter"
    assert result.gross_j == pytest.approx(power.energy(600), abs=0.002)
    assert result.crosscheck_method.startswith("nvml_power_")


def test_gap_is_closed_by_the_counter_and_bounded_without_one():
    power = Power("square", 100.0, 700.0, 6.1)
    times = [t for t in beats(120) if not 30 < t < 71]
    truth = power.energy(120)
    with_counter = account.gpu_energy(samples_of(power, times), H, limit_w=700)
    assert with_counter.gross_j == pytest.approx(truth, abs=0.01)
    without = account.gpu_energy(samples_of(power, times, counter=False), H, limit_w=700)
    assert abs(without.gross_j - truth) <= without.error_j
    assert without.error_j >= 41 * 350, "the gap of 41 s must show in the bound"
    timing = account.timing(without.times, 0, 120, H)
    assert (timing.gaps, timing.largest_s) == (1, pytest.approx(41.0))
    assert timing.coverage == pytest.approx(1 - 41 / 120)


def test_poller_that_died_is_not_filled_in():
    """FINDINGS: a poller dead at 10 s of 600 s, filled in as constant, is 60 kJ for 414 J."""
    readings = samples_of(Power("const", 100.0), beats(10))
    result = account.gpu_energy([*readings, (600.0, None, None)], H)
    assert result.gross_j is None
    assert "lost 590.0 s before the end" in result.reason and "1000.0 J" in result.reason
    assert "lost_device" in result.flags


def test_counter_reset_is_bridged_by_power():
    power = Power("const", 250.0)
    readings = [(t, c if t < 60 else int(1e3 * 250 * (t - 60)), p) for t, c, p in samples_of(power, beats(120))]
    result = account.gpu_energy(readings, H)
    assert result.gross_j == pytest.approx(power.energy(120), rel=1e-6)
    assert "counter_reset" in result.flags and "disputed" not in result.flags


def test_counter_that_stalls_and_catches_up_is_believed():
    power = Power("const", 300.0)
    stood = int(1e3 * power.energy(40))
    readings = [(t, stood if 40 <= t < 50 else c, p) for t, c, p in samples_of(power, beats(100))]
    result = account.gpu_energy(readings, H)
    assert result.gross_j == pytest.approx(power.energy(100), abs=0.01)
    assert result.flags == []


def test_counter_that_stalls_for_good_is_replaced_by_power():
    power = Power("const", 300.0)
    stood = int(1e3 * power.energy(40))
    readings = [(t, min(c, stood), p) for t, c, p in samples_of(power, beats(100))]
    result = account.gpu_energy(readings, H)
    assert "counter_stalled" in result.flags
    assert result.gross_j == pytest.approx(power.energy(100), rel=0.01)


def test_idle_gpu_with_a_coarse_counter_is_not_called_stalled():
    readings = [(t, 1000 * int(t // 2.5), 0.4) for t in beats(60)]
    assert "counter_stalled" not in account.gpu_energy(readings, H).flags


@pytest.mark.parametrize(
    ("scale", "flag"),
    [(1.0, None), (1.01, None), (1.035, "counter_power_differ"), (1.2, "disputed"), (0.57, "disputed")],
)
def test_disagreement_of_counter_and_power_is_flagged(scale, flag):
    readings = [(t, int(c * scale), p) for t, c, p in samples_of(Power("const", 300.0), beats(300))]
    result = account.gpu_energy(readings, H)
    assert [f for f in result.flags if f in ("counter_power_differ", "disputed")] == ([flag] if flag else [])
    assert result.crosscheck_j == pytest.approx(300 * 300)


def test_stale_power_is_disputed_by_the_counter():
    power = Power("linear", 100.0, 5.0)
    readings = [(t, c, 100.0 if t > 1 else p) for t, c, p in samples_of(power, beats(100))]
    result = account.gpu_energy(readings, H)
    assert "disputed" in result.flags
    assert result.gross_j == pytest.approx(power.energy(100), abs=0.01)


def test_missing_values_of_one_kind_leave_the_other():
    power = Power("const", 300.0)
    readings = [
        (t, None if 20 <= t < 40 else c, None if 60 <= t < 80 else p) for t, c, p in samples_of(power, beats(100))
    ]
    result = account.gpu_energy(readings, H)
    assert result.gross_j == pytest.approx(power.energy(100), abs=0.01)


def test_constant_300_w_read_with_equal_samples_is_18_kj():
    """FINDINGS: integrating deduplicated samples without edges gives 0 J for 60 s of a constant 300 W."""
    assert account.gpu_energy(samples_of(Power("const", 300.0), beats(60), counter=False), H).gross_j == 18000.0


def test_no_reading_at_all_is_null_with_a_reason():
    result = account.gpu_energy([(t, None, None) for t in beats(10)], H)
    assert result.gross_j is None and result.reason


# -- RAPL

RANGE = 262_143_328_850


def wrapped(total_uj: int, first: int) -> int:
    return (first + total_uj) % RANGE


@given(
    st.integers(0, RANGE - 1),
    st.lists(st.tuples(st.floats(0.3, 1.4), st.integers(0, 180_000_000)), min_size=1, max_size=300),
)
def test_rapl_is_exact_to_a_microjoule_over_any_wraps(first, steps):
    readings, t, total = [(0.0, first, None)], 0.0, 0
    for h, delta in steps:
        t, total = t + h, total + delta
        readings.append((t, wrapped(total, first), None))
    result = account.rapl_energy(readings, H, RANGE, 600.0)
    assert result.gross_j == pytest.approx(total * 1e-6, abs=1e-6, rel=0)
    assert "counter_reset" not in result.flags


def test_six_hours_at_200_w_with_start_and_stop_only_is_not_minus_97_percent():
    """FINDINGS: start/stop reading alone loses 97%; each tick counts here, 17 wraps included."""
    readings = [(t, wrapped(int(200e6 * t), 7_000_000), None) for t in range(0, 6 * 3600 + 1, 5)]
    result = account.rapl_energy(readings, 5.0, RANGE, 600.0)
    assert result.gross_j == pytest.approx(200 * 6 * 3600, abs=1e-6)
    alone = account.rapl_energy([readings[0], readings[-1]], 5.0, RANGE, 600.0)
    assert "wraps_ambiguous" in alone.flags and abs(alone.gross_j - 200 * 6 * 3600) <= alone.error_j


def test_read_just_after_a_wrap():
    """FINDINGS: −261,893 J for 250 J."""
    readings = [(0.0, RANGE - 100_000_000, None), (0.5, 150_000_000, None)]
    assert account.rapl_energy(readings, H, RANGE, 600.0).gross_j == pytest.approx(250.0, abs=1e-6)


def test_failed_read_is_no_wrap():
    """FINDINGS: 263,143 J for 1,000 J when a read failed."""
    readings = [(0.5 * k, None if k in (7, 8) else 10_000_000 * k, None) for k in range(101)]
    assert account.rapl_energy(readings, H, RANGE, 600.0).gross_j == pytest.approx(1000.0, abs=1e-6)


def test_rapl_reset_is_not_taken_for_a_wrap():
    readings = [
        (0.5 * k, 50_000_000_000 + 50_000_000 * k if k <= 50 else 50_000_000 * (k - 50), None) for k in range(101)
    ]
    result = account.rapl_energy(readings, H, RANGE, 600.0)
    assert "counter_reset" in result.flags
    assert result.gross_j == pytest.approx(100 * 50, rel=0.01)
    assert abs(result.gross_j - 5000) <= result.error_j


def test_shares_divide_a_package():
    readings = [(0.5 * k, 50_000_000 * k, None) for k in range(101)]
    mine = {t: 0.3 for t, _, _ in readings if t > 25}
    yours = {t: 0.6 for t, _, _ in readings if t > 25}
    a = account.rapl_energy(readings, H, RANGE, 600.0, shares=mine).gross_j
    b = account.rapl_energy(readings, H, RANGE, 600.0, shares=yours).gross_j
    assert a == pytest.approx(2500 + 0.3 * 2500)
    assert b == pytest.approx(2500 + 0.6 * 2500)


@given(st.lists(st.tuples(st.integers(0, 150_000_000), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=100))
def test_attribution_never_exceeds_the_package(steps):
    """Whatever part of the busy time two stages have, together at most all of it."""
    readings, mine, yours, total = [(0.0, 0, None)], {}, {}, 0
    for k, (delta, busy, part) in enumerate(steps, 1):
        total += delta
        readings.append((0.5 * k, total, None))
        mine[0.5 * k], yours[0.5 * k] = busy * part, busy * (1 - part)
    a, b = (account.rapl_energy(readings, H, RANGE, 600.0, shares=s).gross_j for s in (mine, yours))
    assert a >= 0 and b >= 0
    assert a + b <= total * 1e-6 * (1 + 1e-9) + 1e-9
    assert a + b == pytest.approx(sum(d * busy for d, busy, _ in steps) * 1e-6, abs=1e-9)


# -- properties of integration

watts = st.floats(0, 1000, allow_nan=False)
steps = st.lists(st.tuples(st.floats(0.05, 1.4), watts), min_size=2, max_size=60)


def _power_samples(steps):
    times = list(itertools.accumulate(h for h, _ in steps))
    return [(t, None, p) for t, (_, p) in zip(times, steps, strict=True)]


@given(steps, st.integers(1, 58))
def test_energy_of_parts_is_the_energy_of_the_whole(steps, cut):
    readings = _power_samples(steps)
    cut = min(cut, len(readings) - 1)
    whole = account.gpu_energy(readings, H).gross_j
    left = account.gpu_energy(readings[: cut + 1], H).gross_j
    right = account.gpu_energy(readings[cut:], H).gross_j
    assert left + right == pytest.approx(whole, rel=1e-9, abs=1e-9)


@given(steps)
def test_energy_lies_between_lowest_and_highest_power(steps):
    readings = _power_samples(steps)
    window = readings[-1][0] - readings[0][0]
    lowest, highest = min(p for _, _, p in readings), max(p for _, _, p in readings)
    gross = account.gpu_energy(readings, H).gross_j
    assert lowest * window - 1e-6 <= gross <= highest * window + 1e-6


@given(steps, st.floats(0, 1), st.floats(0, 1))
def test_curve_rises_and_phases_add_up(steps, x, y):
    readings = _power_samples(steps)
    result = account.gpu_energy(readings, H)
    start, end = readings[0][0], readings[-1][0]
    a, b = sorted((start + x * (end - start), start + y * (end - start)))
    parts = [result.at(a) - result.at(start), result.at(b) - result.at(a), result.at(end) - result.at(b)]
    assert all(part >= -1e-9 for part in parts)
    assert math.fsum(parts) == pytest.approx(result.gross_j, rel=1e-9, abs=1e-9)


@settings(max_examples=50)
@given(st.floats(0.6, 30), st.floats(0, 1), st.floats(0, 700), st.floats(0, 700))
def test_bound_holds_for_any_square_wave_with_dwell_above_the_interval(period, phase, low, high):
    power = Power("square", low, high, 2 * period)
    times = [t + phase * period for t in beats(60)]
    truth = power.energy(times[-1]) - power.energy(times[0])
    result = account.gpu_energy(samples_of(power, times, counter=False), H)
    assert abs(result.gross_j - truth) <= result.error_j + 1e-6


# -- estimates


def test_estimator_that_restarts_keeps_what_it_had():
    readings = [(0.0, 5.0, None), (1.0, 15.0, None), (2.0, 25.0, None), (5.0, 0.0, None), (6.0, 8.0, None)]
    assert account.estimate_energy(readings, "codecarbon_process").gross_j == pytest.approx(28.0)


def test_what_the_estimate_missed_is_added():
    readings = [(float(k), 0.1 * k, None) for k in range(11)]
    result = account.estimate_energy(readings, "codecarbon_process", [(0.0, 4.0), (10.0, 44.0)])
    assert result.crosscheck_j == pytest.approx(40.0) == result.gross_j and "short_processes" in result.flags
    assert result.at(5.0) == pytest.approx(20.0)
    disputed = account.estimate_energy([(float(k), 9.0 * k, None) for k in range(11)], "x", [(0.0, 4.0), (10.0, 44.0)])
    assert disputed.flags == ["disputed"] and disputed.gross_j == pytest.approx(40.0)  # more than the CPU time allows
    agreed = account.estimate_energy(readings, "codecarbon_process", [(0.0, 4.0), (10.0, 5.01)])
    assert agreed.flags == []


# -- a real trace


def test_real_h100_trace(reference_data):
    with open(reference_data / "h100_traces" / "kd_32b_to_13b_power.csv", newline="") as handle:
        rows = [(float(row["timestamp"]), float(row["gpu_0_power_w"])) for row in csv.DictReader(handle)]
    readings = [(t, None, p) for t, p in rows]
    result = account.gpu_energy(readings, H, limit_w=700)
    assert result.gross_j == pytest.approx(782_035, abs=1)
    times = [t for t, _ in rows]
    above_1_s = [b - a for a, b in itertools.pairwise(times) if b - a > 1]
    timing = account.timing(times, times[0], times[-1], H)
    assert len(above_1_s) == 2 and timing.largest_s == pytest.approx(7.6, abs=0.1)
    assert timing.gaps == 2
    assert 0.99 < timing.coverage < 1
    # the same trace with a counter of its own loses nothing in the gaps
    counted = [(t, int(1e3 * result.at(t)), p) for t, p in rows]
    assert account.gpu_energy(counted, H, limit_w=700).gross_j == pytest.approx(result.gross_j, abs=0.01)
