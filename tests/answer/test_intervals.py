"""Intervals against analytic truth and against their own promise: coverage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_energy.answer.intervals import bootstrap_means, fieller, mean_interval, t_quantile, welch


def test_student_t_of_two_values_is_the_textbook_one():
    estimate = mean_interval([1.0, 3.0])
    # s = √2, s/√2 = 1, t(0.975, 1) = 12.7062
    assert estimate.value == 2.0
    assert estimate.high - 2.0 == pytest.approx(12.7062, abs=1e-4)
    assert estimate.low == pytest.approx(2.0 - 12.7062, abs=1e-4)


def test_one_seed_gives_no_interval_and_says_so():
    estimate = mean_interval([5.0])
    assert (estimate.value, estimate.low, estimate.high) == (5.0, None, None)
    assert "one seed" in estimate.reason


def test_an_unknown_value_makes_the_mean_unknown_not_smaller():
    assert mean_interval([5.0, None]).value is None
    assert mean_interval([5.0, math.nan]).value is None


def test_welch_matches_the_pooled_test_for_equal_samples():
    difference = welch([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert difference.value == -3.0
    assert difference.se == pytest.approx(math.sqrt(2 / 3))
    assert difference.df == pytest.approx(4.0)


def test_fieller_with_an_exact_numerator_is_the_inverse_of_the_denominators_interval():
    quantile, se = 2.0, 0.1
    ratio = fieller(10.0, 1.0, 0.0, se**2, 0.0, quantile)
    assert ratio.kind == "bounded"
    assert ratio.low == pytest.approx(10 / (1 + quantile * se))
    assert ratio.high == pytest.approx(10 / (1 - quantile * se))


def test_fieller_is_unbounded_where_the_denominators_sign_is_open():
    ratio = fieller(10.0, 1.0, 0.0, 1.0, 0.0, 2.0)
    assert ratio.kind == "complement"
    assert ratio.high == pytest.approx(10 / 3)  # positive branch: a/(b + q·se) and beyond
    assert ratio.low == pytest.approx(10 / -1)
    assert fieller(0.1, 0.1, 1.0, 1.0, 0.0, 2.0).kind == "all"


@given(
    a=st.floats(-100, 100),
    b=st.floats(-100, 100),
    va=st.floats(0, 50),
    vb=st.floats(0, 50),
    rho=st.floats(-50, 50),
)
def test_fieller_holds_exactly_the_ratios_its_definition_accepts(a, b, va, vb, rho):
    q = 2.0
    left, right = (a - rho * b) ** 2, q * q * (va + rho * rho * vb)
    if abs(left - right) <= 1e-6 * max(left, right, 1.0):
        return  # on the edge
    ratio = fieller(a, b, va, vb, 0.0, q)
    accepted = {
        "all": True,
        "bounded": ratio.low is not None and ratio.low <= rho <= ratio.high,
        "complement": ratio.low is not None and (rho <= ratio.low or rho >= ratio.high),
    }[ratio.kind]
    lead = b * b - q * q * vb
    if abs(lead) > 1e-6 * max(b * b, 1.0):
        assert accepted == (left <= right)


def test_t_interval_covers_as_often_as_it_promises_where_the_percentile_bootstrap_does_not():
    rng = np.random.default_rng(0)
    samples = rng.normal(100.0, 5.0, size=(4000, 3))
    half = t_quantile(0.95, 2) * samples.std(axis=1, ddof=1) / math.sqrt(3)
    covered = np.abs(samples.mean(axis=1) - 100) <= half
    assert covered.mean() == pytest.approx(0.95, abs=0.012)
    picks = rng.integers(0, 3, size=(4000, 400, 3))
    means = np.take_along_axis(samples[:, None, :].repeat(400, 1), picks, 2).mean(axis=2)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    assert ((low <= 100) & (high >= 100)).mean() < 0.85


def test_widened_bootstrap_has_the_unbiased_variance():
    values = [10.0, 14.0]
    replicates = bootstrap_means(values, 200_000, np.random.default_rng(0))
    assert replicates.var() == pytest.approx(np.var(values, ddof=1) / 2, rel=0.02)
