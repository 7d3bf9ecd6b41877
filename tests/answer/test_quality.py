"""Q: the mean of ratios, never a silent gap, and an interval that covers."""

import numpy as np
import pytest

from distill_energy.answer.quality import difference, quality_of
from distill_energy.evaluate.score import Score


def scores(**values):
    return {name: Score(name, value, 0.01, 0.0, 100) for name, value in values.items()}


TEACHER = scores(a=0.8, b=0.5)


def test_q_is_the_mean_of_ratios_and_may_exceed_one():
    assert quality_of([scores(a=0.4, b=0.25)], TEACHER).value == pytest.approx(0.5)
    assert quality_of([scores(a=0.88, b=0.6)], TEACHER).value == pytest.approx((1.1 + 1.2) / 2)


def test_a_failed_or_missing_benchmark_makes_q_null_and_is_named():
    missing = quality_of([scores(a=0.4, b=0.25), scores(a=0.4)], TEACHER)
    assert missing.value is None
    assert "b is missing" in missing.reason
    broken = scores(a=0.4) | {"b": Score("b", None, status="failed", reason="out of memory")}
    failed = quality_of([broken], TEACHER)
    assert failed.value is None
    assert "b failed (out of memory)" in failed.reason
    absent = quality_of([scores(a=0.4, b=0.25)], TEACHER, expected=["a", "b", "c"])
    assert absent.value is None
    assert "c" in absent.reason


def test_a_benchmark_on_which_the_teacher_is_at_chance_is_refused_or_dropped_by_name():
    teacher = TEACHER | {"guess": Score("guess", 0.26, 0.02, 0.25, 100)}
    student = scores(a=0.4, b=0.25) | {"guess": Score("guess", 0.3, 0.02, 0.25, 100)}
    refused = quality_of([student], teacher)
    assert refused.value is None
    assert "guess" in refused.reason
    dropped = quality_of([student], teacher, drop_unusable=True)
    assert dropped.value == pytest.approx(0.5)
    assert dropped.dropped == ("guess",)


def test_one_seed_has_no_interval_but_says_how_much_the_items_move_it():
    quality = quality_of([scores(a=0.4, b=0.25)], TEACHER)
    assert quality.low is None
    assert "one seed" in quality.reason
    assert quality.items_low < 0.5 < quality.items_high


def test_same_data_same_interval():
    runs = [scores(a=0.4, b=0.25), scores(a=0.44, b=0.27)]
    first, second = quality_of(runs, TEACHER, salt="g"), quality_of(runs, TEACHER, salt="g")
    assert (first.low, first.high) == (second.low, second.high)


def _simulate(rng, n_items=120, n_seeds=4):
    """Item difficulties shared by teacher and students; true Q = 0.6."""
    difficulty = rng.beta(4, 2, n_items)
    seed_effect = rng.normal(0, 0.02, n_seeds)
    teacher = (rng.random(n_items) < difficulty).astype(float)
    students = [(rng.random(n_items) < difficulty * (0.6 + e)).astype(float) for e in seed_effect]

    def score(values):
        items = {str(i): float(v) for i, v in enumerate(values)}
        return {"a": Score("a", float(values.mean()), None, 0.0, n_items, items=items)}

    return [score(s) for s in students], score(teacher)


def test_the_interval_over_items_and_seeds_covers():
    rng = np.random.default_rng(5)
    covered, trials = 0, 300
    for _ in range(trials):
        runs, teacher = _simulate(rng)
        quality = quality_of(runs, teacher, draws=400)
        covered += quality.low <= 0.6 <= quality.high
    assert 0.90 <= covered / trials <= 0.995


def test_paired_items_make_a_difference_sharper_than_two_intervals():
    rng = np.random.default_rng(6)
    runs, teacher = _simulate(rng)
    worse = [{"a": Score("a", r["a"].score * 0.9, items={k: v * 0.9 for k, v in r["a"].items.items()})} for r in runs]
    one, other = quality_of(runs, teacher, salt="x"), quality_of(worse, teacher, salt="x")
    value, low, high = difference(one, other)
    assert value == pytest.approx(one.value * 0.1)
    assert high - low < 0.95 * (one.high - one.low)
    assert difference(quality_of(runs[:1], teacher), one)[1] is None
