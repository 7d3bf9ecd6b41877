"""The published table, fed in as sidecars, gives the published answers."""

import pytest

from distill_energy.answer.breakeven import whole_reuses
from distill_energy.errors import UserError
from distill_energy.published.replay import read_table, replay, verdict


@pytest.fixture(scope="module")
def paper(repo, tmp_path_factory):
    rows, summary, comparison = replay(repo / "configs" / "paper_table.yaml", tmp_path_factory.mktemp("paper"))
    return rows, {(r["pipeline"], r["student"]): r for r in summary}, comparison


@pytest.mark.parametrize(
    ("key", "total"),
    [
        (("sft", "1B"), 7.00),
        (("sft", "7B"), 19.50),
        (("sft", "13B"), 34.60),
        (("kd", "1B"), 16.90),
        (("kd", "13B"), 42.50),
        (("synthetic", "13B"), 40.70),
    ],
)
def test_totals(paper, key, total):
    assert paper[1][key]["e_oneoff_kwh"] == pytest.approx(total, abs=0.005)


def test_break_even_counts(paper):
    stars = {key: row["n_star"] for key, row in paper[1].items() if row["n_star"] is not None}
    assert stars == {
        ("kd", "1B"): pytest.approx(11.00 / 1.10),
        ("kd", "13B"): pytest.approx(11.00 / 3.10),
        ("synthetic", "1B"): pytest.approx(10.60 / 0.95),
        ("synthetic", "13B"): pytest.approx(10.60 / 4.50),
    }
    assert whole_reuses(stars["kd", "1B"]) == 10  # about 10
    assert whole_reuses(stars["kd", "13B"]) == 4  # 3.55: in "4 to 6" only as whole reuses
    assert 10.5 <= stars["synthetic", "1B"] <= 11.5  # about 11
    assert 2 <= stars["synthetic", "13B"] <= 3  # 2 to 3


def test_kd_1b_costs_2_4_times_sft_1b(paper):
    _, rows, _ = paper
    assert round(rows["kd", "1B"]["e_oneoff_kwh"] / rows["sft", "1B"]["e_oneoff_kwh"], 1) == 2.4


def test_dominated_points(paper):
    _, rows, _ = paper
    assert set(rows["kd", "13B"]["dominated_by_oneoff"]) == {"SFT 7B", "SFT 13B", "Synthetic 13B"}
    assert set(rows["synthetic", "13B"]["dominated_by_oneoff"]) == {"SFT 7B", "SFT 13B"}
    front = {key for key, row in rows.items() if row["on_front_oneoff"]}
    assert front == {("sft", "1B"), ("kd", "1B"), ("sft", "7B"), ("sft", "13B")}
    assert rows["synthetic", "1B"]["on_front_oneoff"] is None  # its Q is not published
    assert "missing" in rows["synthetic", "1B"]["q_reason"]


def test_qualities_pass_through_and_have_no_interval(paper):
    _, rows, _ = paper
    published = {
        ("sft", "1B"): 0.69,
        ("sft", "7B"): 0.90,
        ("sft", "13B"): 0.99,
        ("kd", "1B"): 0.70,
        ("kd", "13B"): 0.82,
        ("synthetic", "13B"): 0.85,
    }
    for key, q in published.items():
        assert rows[key]["q"] == pytest.approx(q)
        assert rows[key]["q_low"] is None
    assert rows["kd", "13B"]["delta_q"] == pytest.approx(-0.17)


def test_what_is_published_only_as_a_total_enters_no_stage(paper):
    rows, summary, _ = paper
    assert summary["sft", "7B"]["e_student_kwh"] is None
    assert not any(r["student"] == "7B" for r in rows)


def test_published_values_agree_unrounded_and_what_is_independent_is_said(paper):
    comparison = paper[2]
    assert len(comparison) == 11
    differs = [row for row in comparison if not row["agrees"]]
    # 11.00 / 3.10 lies in "4 to 6 (larger students)" only where it is rounded up to whole reuses.
    assert [(r["quantity"], r["pipeline"], r["student"]) for r in differs] == [("N* (reuses)", "kd", "13B")]
    assert differs[0]["ours"] == pytest.approx(3.548, abs=0.001)
    assert differs[0]["note"] == "within the range only as whole reuses: it has paid at the 4th"
    dependent = {(r["quantity"], r["pipeline"], r["student"]) for r in comparison if not r["independent"]}
    assert dependent == {("E one-off (kWh)", "sft", "7B"), ("E one-off: kd 1B / sft 1B", "kd", "1B")}
    said = "10 of 11 published values agree; 9 comparisons are independent, 8 of them agree"
    assert verdict(comparison) == said


def test_a_changed_table_disagrees(repo, tmp_path):
    text = (repo / "configs" / "paper_table.yaml").read_text().replace("student_kwh: 5.20", "student_kwh: 6.10")
    changed = tmp_path / "table.yaml"
    changed.write_text(text)
    _, _, comparison = replay(changed, tmp_path / "work")
    assert {(r["quantity"], r["student"]) for r in comparison if not r["agrees"]} >= {
        ("E one-off (kWh)", "1B"),
        ("N* (reuses)", "1B"),
    }


def test_a_table_that_lacks_a_key_is_named(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("teacher: a\ndataset: b\npreprocess_kwh: 1\nruns: [{pipeline: kd, student: x, student_kwh: 1}]\n")
    with pytest.raises(UserError, match=r"runs\[0\].evaluation_kwh"):
        read_table(path)
