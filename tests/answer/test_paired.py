"""Arms compared seed by seed, where the configuration says that they share their seeds' noise."""

import factory
import numpy as np
import pytest

from distill_energy.answer.aggregate import answer
from distill_energy.answer.breakeven import n_star
from distill_energy.answer.campaign import balance
from distill_energy.answer.intervals import Spread, difference, pairs_spread
from distill_energy.config import parse_config

BASE, OWN = [100.0, 140.0, 120.0], [90.0, 131.0, 109.0]  # the seeds vary by far more than the saving


def test_what_pairs_share_cancels():
    apart, together = difference(BASE, OWN), difference(BASE, OWN, paired=True)
    assert together.value == pytest.approx(apart.value) == pytest.approx(10)
    assert (together.df, together.se) == (2, pytest.approx(np.std([10, 9, 11], ddof=1) / 3**0.5))
    assert together.se < apart.se / 10
    assert n_star(50.0, BASE, OWN).status == "undecided"
    found = n_star(50.0, BASE, OWN, paired=True)
    assert (found.status, found.value) == ("finite", pytest.approx(5))


def test_a_baseline_that_several_arms_share_counts_once():
    other = [[80.0, 121.5, 99.0], [70.0, 108.5, 91.0]]
    spread = pairs_spread([(BASE, OWN), *((BASE, arm) for arm in other)])
    assert spread.df == 2
    assert pairs_spread([(BASE, OWN)]) is None  # nothing to pool with


def test_a_balance_takes_each_arm_as_it_is_compared():
    plain = balance(10.0, 0.0, [(BASE, OWN)])
    paired = balance(10.0, 0.0, [(BASE, OWN)], paired=[None])
    assert plain.value == pytest.approx(paired.value) == pytest.approx(20)
    assert paired.high - paired.low < 0.2 * (plain.high - plain.low)
    assert paired.probability > 0.98 > plain.probability
    pooled = balance(10.0, 0.0, [(BASE, OWN)], paired=[Spread(0.01, 20.0)])
    assert pooled.high - pooled.low < paired.high - paired.low


def noisy(monkeypatch, root):
    """The demo with 10 % between seeds, the same for every arm of a seed, and 0.5 % of its own."""
    real, shared = factory.stage, {0: 1.1, 1: 0.9}

    def scaled(root, key, gross_j, *args, **kwargs):
        factor = shared[kwargs["seed"]] if key[0] == "student_training" else 1.0
        return real(root, key, gross_j * factor, *args, **kwargs)

    monkeypatch.setattr(factory, "stage", scaled)
    return factory.demo(root, noise=0.005)


def test_the_configuration_chooses(tmp_path, monkeypatch):
    root = noisy(monkeypatch, tmp_path)
    apart, together = (
        [r for r in answer([root], config={"accounting": {"paired": chosen}})[1] if r["pipeline"] == "kd"]
        for chosen in (False, True)
    )
    assert {r["n_star_status"] for r in apart} == {"undecided"}
    assert {r["n_star_status"] for r in together} == {"finite"}
    assert [r["n_star"] for r in together] == pytest.approx([r["n_star"] for r in apart])
    assert all(r["balance_low_kwh"] > a["balance_low_kwh"] for r, a in zip(together, apart, strict=True))
    for row, other in zip(
        together, apart, strict=True
    ):  # the seeds say it once for all arms, so energies are less sure
        assert row["e_oneoff_spread_high_kwh"] > other["e_oneoff_spread_high_kwh"]


def test_other_seeds_are_no_pairs(tmp_path):
    """SFT with seeds 0 and 1, KD with 2 and 3: as if nothing had been chosen."""
    factory.demo(tmp_path, seeds=(0, 1), pipelines=("sft",))
    factory.demo(tmp_path, seeds=(2, 3), pipelines=("kd",))
    stars = [
        [
            (r["n_star"], r["n_star_status"])
            for r in answer([tmp_path], config={"accounting": {"paired": chosen}})[1]
            if not r["is_baseline"]
        ]
        for chosen in (False, True)
    ]
    assert [value for value, _ in stars[0]] == [value for value, _ in stars[1]]


def test_the_key_is_read_and_checked(repo):
    import yaml

    from distill_energy.errors import UserError

    data = yaml.safe_load((repo / "configs" / "smoke.yaml").read_text(encoding="utf-8"))
    data["accounting"] = {"paired": True}
    assert parse_config(data).accounting.paired is True
    data["accounting"] = {"paired": "sometimes"}
    with pytest.raises(UserError, match=r"accounting\.paired"):
        parse_config(data)
