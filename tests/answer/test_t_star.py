"""T*: every variance, every sign of what was spent and what is saved."""

import pytest

from distill_energy.answer.breakeven import t_star
from distill_energy.answer.campaign import balance
from distill_energy.answer.intervals import Spread, difference, pooled, welch


def test_a_student_that_starts_ahead_and_serves_for_more_is_ahead_until_t_star():
    result = t_star([-5, -5.1], [0.10, 0.101], [0.12, 0.121])
    assert result.status == "until"
    assert result.value == pytest.approx(5.05 / 0.02)
    assert result.low < result.value


def test_a_saving_whose_interval_is_clear_of_zero_is_never_said_to_span_it():
    for spread in (0.0, 0.1, 1.0, 5.0):
        result = t_star([10 - spread, 10 + spread], [0.2, 0.21], [0.1, 0.11])
        spans = result.saving_low <= 0 < result.saving_high
        assert (result.status == "undecided") == spans
        if not spans:
            assert "spans zero" not in (result.reason or "")


def test_the_references_own_spread_widens_t_star():
    alone = t_star([10.0, 10.1, 9.9], [0.2] * 3, [0.1, 0.1001, 0.0999])
    beside = t_star([10.0, 10.1, 9.9], [0.2] * 3, [0.1, 0.1001, 0.0999], reference_spent_j=[3.0, 5.0, 7.0])
    assert beside.value == alone.value
    assert beside.high - beside.low > 3 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("extra", "theirs", "ours", "status"),
    [
        ([5, 5.1], [0.2, 0.2001], [0.1, 0.1001], "finite"),
        ([-5, -5.1], [0.2, 0.2001], [0.1, 0.1001], "immediate"),
        ([5, 5.1], [0.1, 0.1001], [0.2, 0.2001], "never"),
        ([5, 5.1], [0.1, 0.2], [0.12, 0.19], "undecided"),
        ([5], [0.2], [0.1], "finite"),
        ([None, 5], [0.2, 0.2], [0.1, 0.1], "unknown"),
        ([5, 5], [0.2, 0.2], [0.1, None], "unknown"),
    ],
)
def test_status(extra, theirs, ours, status):
    assert t_star(extra, theirs, ours).status == status


def test_a_pooled_spread_has_every_groups_degrees_of_freedom():
    groups = [[100, 102], [50, 51], [200, 196], [10, 10.3]]
    spread = pooled(groups)
    assert spread.df == 4
    assert spread.relative == pytest.approx(0.0172, abs=0.002)
    assert difference(groups[0], groups[1], spread).interval()[0] > welch(groups[0], groups[1]).interval()[0]
    assert pooled([[100, 102]]) is None and pooled([[1, 1], [2, 2.1]]) is None


def test_spreads_that_differ_are_not_pooled():
    assert pooled([[100, 100.1, 99.9, 100.05, 99.95], [100, 150, 60, 130, 80]]) is None


def test_a_balance_is_savings_less_cost():
    found = balance(30.0, 5.0, [([100.0, 102.0], [90.0, 91.0]), ([50.0], [40.0])])
    assert found.saved == pytest.approx(2 * (101 - 90.5) + 10)
    assert found.value == pytest.approx(found.saved - 35)
    assert found.more == pytest.approx(4 / (31 / 3)) and found.probability is None
    sure = balance(30.0, 0.0, [([100.0, 101.0], [50.0, 51.0])], spread=Spread(0.01, 20.0))
    assert sure.probability > 0.99 and sure.low > 0
