"""Two studies in one results folder: what one alone lists is not the other's to count."""

import pytest

from distill_energy.answer.experiments import (
    answer_folders,
    compare,
    listed_elsewhere,
    mark_elsewhere,
    register,
    results_of,
)
from distill_energy.errors import UserError


def test_folders(tmp_path):
    named = tmp_path / "results" / "experiments" / "second"
    named.mkdir(parents=True)
    assert results_of(named) == tmp_path / "results" == results_of(tmp_path / "results")
    assert answer_folders(tmp_path / "results") == [tmp_path / "results", named]
    lists = {
        named: [["evaluation", "e", "1"]],
        tmp_path / "results": [["evaluation", "e", "2"], ["prerun", "host", "0"]],
    }
    assert listed_elsewhere(named, lambda folder: {"current": lists[folder]}) == [
        ("evaluation", "e", "2"),
        ("prerun", "host", "0"),
    ]
    assert listed_elsewhere(tmp_path / "results", lambda folder: {"current": lists[folder]}) == [
        ("evaluation", "e", "1")
    ]
    register(named, [("prerun", "host", "9")])  # one that started and has no answer yet
    assert listed_elsewhere(tmp_path / "results", lambda folder: {}) == [("prerun", "host", "9")]


def test_only_what_is_not_ours_is_elsewhere():
    def row(name):
        return {"stage": "student_training", "name": name, "version": "1", "status": "ok", "flags": []}

    rows = [row("shared"), row("theirs"), row("nobody's")]
    others = [["student_training", "shared", "1"], ["student_training", "theirs", "1"]]
    mark_elsewhere(rows, others, [("student_training", "shared", "1")])
    assert [r["status"] for r in rows] == ["ok", "elsewhere", "ok"]  # nobody's is abandoned, which is ours to count


def summary_row(**changes):
    row = {
        "teacher": "t", "dataset": "d", "pipeline": "kd", "hyperparameters": "{}", "student": "s", "label": "kd · s",
        "e_oneoff_kwh": 2.0, "e_campaign_kwh": 3.0, "q": 0.5, "n_star": 4.0, "n_star_status": "finite",
        "is_baseline": False, "execution": "cpu",
    }  # fmt: skip
    return row | changes


def test_compare():
    found = compare(
        [summary_row(), summary_row(pipeline="sft", label="sft · s", is_baseline=True, n_star=None)],
        [summary_row(e_oneoff_kwh=3.0, q=0.75), summary_row(student="new", label="kd · new")],
    )
    assert [(r["label"], r["energy_ratio"], r["q_difference"], r["reason"]) for r in found] == [
        ("kd · s", 1.5, 0.25, None),
        ("sft · s", None, None, "only in A"),
        ("kd · new", None, None, "only in B"),
    ]
    assert found[1]["a_n_star_status"] == "baseline"
    (other,) = compare([summary_row()], [summary_row(execution="gpu")])
    assert other["energy_ratio"] is None and "execution classes" in other["reason"]
    assert other["q_difference"] == 0.0
    with pytest.raises(UserError):
        compare([], [summary_row()])
