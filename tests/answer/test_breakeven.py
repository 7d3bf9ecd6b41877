"""N* and T*: finite, never, undecided, unknown, and that the interval covers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_energy.answer.breakeven import amortised, n_star, t_star, whole_reuses
from distill_energy.answer.intervals import Difference, seeds_to_decide
from distill_energy.answer.pareto import front


def test_the_papers_kd_1b_breaks_even_after_ten():
    assert n_star(11.0, [6.30], [5.20]).value == pytest.approx(10.0)


def test_a_saving_of_zero_or_less_is_never_and_no_number():
    for distill in ([6.30], [7.0]):
        result = n_star(11.0, [6.30], distill)
        assert result.status == "never"
        assert result.value is None
    clear = n_star(11.0, [5.0, 5.1, 4.9], [7.0, 7.1, 6.9], reuse=100)
    assert (clear.status, clear.value) == ("never", None)
    assert clear.probability < 0.001


def test_a_saving_whose_interval_spans_zero_is_undecided_and_has_no_upper_limit():
    result = n_star(11.0, [6.0, 7.0], [5.0, 6.5], reuse=3)
    assert result.status == "undecided"
    assert result.saving_low < 0 < result.saving_high
    assert result.high is None
    assert result.low == pytest.approx(11.0 / result.saving_high)
    worse = n_star(11.0, [5.0, 6.5], [6.0, 7.0])
    assert (worse.status, worse.value) == ("undecided", None)


def test_missing_arms_and_unknown_energies_are_unknown_with_a_reason():
    assert n_star(None, [1.0], [0.5]).status == "unknown"
    assert "baseline" in n_star(1.0, [], [0.5]).reason
    assert n_star(1.0, [1.0, None], [0.5]).status == "unknown"


@given(teacher=st.floats(0.1, 1e4), baseline=st.floats(0.2, 1e4), share=st.floats(0.01, 0.95), rest=st.floats(0, 1e3))
def test_at_n_star_the_amortised_energy_is_the_baselines(teacher, baseline, share, rest):
    distill = baseline * share
    n = n_star(teacher, [baseline], [distill]).value
    assert amortised(teacher, distill + rest, n) == pytest.approx(baseline + rest, rel=1e-6)


def test_fiellers_interval_of_n_star_covers_as_often_as_it_promises():
    rng = np.random.default_rng(3)
    truth, covered, trials = 10.0 / 2.0, 0, 1500
    for _ in range(trials):
        result = n_star(10.0, list(rng.normal(12, 0.5, 3)), list(rng.normal(10, 0.5, 3)))
        low = result.low if result.low is not None else 0.0
        high = math.inf if result.high is None else result.high
        covered += low <= truth <= high
    assert covered / trials == pytest.approx(0.95, abs=0.02)


def test_a_teacher_measured_with_an_error_widens_the_interval():
    arms = ([6.3, 6.31, 6.29], [5.2, 5.21, 5.19])
    exact, rough = n_star(11.0, *arms), n_star(11.0, *arms, teacher_sd_j=1.0)
    assert rough.low < exact.low < exact.high < rough.high


def test_probability_of_having_paid_is_half_at_the_break_even_itself():
    arms = ([6.0, 6.2, 6.4], [5.0, 5.2, 5.4])
    assert n_star(10.0, *arms, reuse=10).probability == pytest.approx(0.5)
    assert n_star(10.0, *arms, reuse=1).probability < 0.01
    assert n_star(10.0, *arms, reuse=100).probability > 0.95


def test_t_star_divides_the_extra_joules_by_the_saving_a_token():
    result = t_star([2.0 * 3_600_000], [3.0], [1.0])
    assert result.value == pytest.approx(3_600_000)
    assert t_star([1.0], [1.0], [1.0]).status == "never"
    assert t_star([1.0], [1.0], [2.0]).status == "never"
    assert t_star([-5.0], [3.0], [1.0]).status == "immediate"
    assert t_star([5.0], [3.0], []).status == "unknown"
    assert t_star([5.0, 6.0], [3.0, 3.1], [2.9, 3.05]).status == "undecided"
    bounded = t_star([10.0, 10.2, 9.8], [3.0, 3.01, 2.99], [1.0, 1.01, 0.99])
    assert bounded.value == pytest.approx(5.0)
    assert bounded.low < 5.0 < bounded.high


def test_reuses_are_whole():
    assert whole_reuses(3.55) == 4
    assert whole_reuses(10.000000000000002) == 10
    assert whole_reuses(0.2) == 1
    assert whole_reuses(None) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_front_is_what_no_point_beats(values):
    points = [(str(i), float(e), float(q)) for i, (e, q) in enumerate(values)]
    verdicts = front(points)
    for name, e, q in points:
        beaten = {n for n, f, r in points if (f < e and r >= q) or (f <= e and r > q)}
        assert set(verdicts[name].dominated_by) == beaten
        assert verdicts[name].on_front == (not beaten)


def test_a_point_without_quality_takes_no_part():
    verdicts = front([("a", 1.0, None), ("b", 2.0, 0.5), ("c", None, 0.9)])
    assert verdicts["a"].on_front is None
    assert verdicts["c"].on_front is None
    assert verdicts["b"].on_front is True


def test_the_seeds_advised_decide_as_often_as_they_say():
    """Simulated: with that many seeds four of five experiments tell the saving from none, with two fewer not."""
    random = np.random.default_rng(0)
    saving, sd = 1.0, 1.2
    found = Difference(saving, sd * math.sqrt(2 / 3), 4.0)
    count = seeds_to_decide(found, 3)
    assert 10 < count < 50

    def decided(seeds):
        trials = [
            n_star(5.0, *(list(random.normal(mean, sd, seeds)) for mean in (10.0, 10.0 - saving))).status == "finite"
            for _ in range(600)
        ]
        return sum(trials) / len(trials)

    assert decided(count) == pytest.approx(0.8, abs=0.06)
    assert decided(count - 6) < 0.78
    assert seeds_to_decide(Difference(0.1, sd, 4.0), 3) is None  # a saving that is small beside the spread
    assert seeds_to_decide(Difference(1.0, None, None), 1) is None


def test_what_is_undecided_says_how_many_seeds_would_decide():
    result = n_star(11.0, [6.0, 7.0], [5.0, 6.5], reuse=3)
    assert result.status == "undecided" and result.seeds > 2
    assert n_star(11.0, [6.0, 6.1, 6.2], [5.0, 5.1, 5.2]).seeds is None
