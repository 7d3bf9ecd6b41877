"""The published stages at measured rates: by hand from the table, the logs and the shipped rates."""

import csv

import pytest
import yaml

from distill_energy.errors import UserError
from distill_energy.published.efficiency import efficiency, paragraph, shipped
from distill_energy.report.paper import FILES, write_efficiency, write_paper

KWH = 3.6e6


@pytest.fixture(scope="module")
def table(repo):
    return yaml.safe_load((repo / "configs" / "paper_table.yaml").read_text())


def rate(stage, kind, parameters, j, tok_s, **more):
    row = {"stage": stage, "kind": kind, "parameters": parameters, "j_per_token": j, "tok_s": tok_s, "notes": []}
    row |= {"pipeline_kind": None, "measured_utc": "2026-11-26", "execution": "1× CARD, torch 2"}
    return row | {"j_per_token_low": None, "j_per_token_high": None} | more


@pytest.fixture(scope="module")
def found(table):
    rows = [
        rate("teacher_logits", "forward", 32234279936, 0.0969, 6429),
        rate("student_training", "train", 1484916736, 0.0264, 14173, pipeline_kind="sft"),
        rate("student_training", "train", 1484916736, 0.0244, 19354, pipeline_kind="kd"),
    ]
    works, stars = efficiency(table, rows)
    named = {(w.stage, w.pipeline, w.model): w for w in works}
    return named, {(s.pipeline, s.student): s for s in stars}, (works, stars)


def test_tokens_are_the_published_joules_over_the_logs_j_per_token(found):
    kd = found[0]["student_training", "kd", "1B"]
    assert kd.tokens == pytest.approx(5.20 * KWH / 0.2552)
    assert kd.published_utilisation == pytest.approx(6 * 1484916736 * 871 / 989e12)
    assert kd.ours_kwh == pytest.approx(0.0244 * kd.tokens / KWH)
    assert kd.ours_basis == "measured: CARD, 2026-11-26"
    sft = found[0]["student_training", "sft", "1B"]
    assert "derived" in sft.tokens_basis  # no log of its own
    assert found[0]["teacher_logits", "kd", "32B"].published_j_per_token == pytest.approx(1.32)


def test_n_star_stands_in_energy_in_flops_and_at_measured_rates(found):
    star = found[1]["kd", "1B"]
    saved = (6.30 - 5.20) * KWH / 0.2552
    assert star.published == pytest.approx(10.0)
    assert star.flops == pytest.approx(2 * 32234279936 * 30e6 / (6 * 1484916736 * saved))
    assert star.ours == pytest.approx(30e6 * 0.0969 / (saved * 0.0244))
    assert star.ours_low == pytest.approx(30e6 * 0.0969 / (saved * 0.0264))  # the other setting that was measured


def test_what_was_not_measured_is_marked_or_left_out(found):
    large = found[0]["student_training", "kd", "13B"]
    assert large.ours_basis == "extrapolated by FLOPs from the training of 1.5 B"
    assert large.ours_j_per_token == pytest.approx(0.0244 * 13716198400 / 1484916736)
    assert large.ours_low < large.ours_j_per_token < large.ours_high
    assert found[1]["kd", "13B"].ours_basis == "extrapolated"
    answers = found[0]["teacher_generation", "synthetic", "32B"]
    assert answers.ours_j_per_token is None
    assert answers.ours_kwh is None
    assert found[1]["synthetic", "1B"].ours is None
    assert "not measured" in found[1]["synthetic", "1B"].ours_basis


def test_without_any_rate_nothing_is_said(table):
    works, stars = efficiency(table, [])
    assert all(w.ours_j_per_token is None for w in works)
    assert all(s.ours is None for s in stars)
    assert "measured rates the teacher" not in paragraph(works, stars)


def test_the_paragraph_is_of_these_numbers(found):
    text = paragraph(*found[2])
    said = ("0.0969 J/token where 1.32", "14 times less", "10 as published, 14 in FLOPs and 7.7", "slowed down more")
    for words in (*said, "synthetic 1B"):
        assert words in text


def test_figure_and_tables_are_written(repo, table, tmp_path):
    write_paper(repo / "configs" / "paper_table.yaml", tmp_path)
    for name in FILES:
        assert (tmp_path / name).stat().st_size > 100, name
    with open(tmp_path / "efficiency.csv", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["ours_basis"].partition(":")[0].partition(" ")[0] for row in rows} <= {
        "measured",
        "extrapolated",
        "not",
    }
    page = (tmp_path / "efficiency.md").read_text(encoding="utf-8")
    assert "| kd | 1B | 10.0 | 14.0 |" in page
    text = write_efficiency(table, tmp_path, [])  # no rates at all: still a figure
    assert text


def test_shipped_rates_are_those_of_the_presets():
    assert {row["preset"] for row in shipped()} >= {"h200-olmo2"}


def test_a_table_without_the_section_says_so(table):
    with pytest.raises(UserError, match="efficiency"):
        efficiency({k: v for k, v in table.items() if k != "efficiency"}, [])
