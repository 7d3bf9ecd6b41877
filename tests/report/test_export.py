"""The answer in other tools' forms, and a configuration from five questions."""

import csv
import io

import pytest
import yaml

from distill_energy.__main__ import main
from distill_energy.answer.aggregate import answer
from distill_energy.config.load import load_config
from distill_energy.errors import UserError
from distill_energy.ledger.rows import counts
from distill_energy.plan import build_plan
from distill_energy.report.export import CODECARBON, codecarbon, latex, tex
from distill_energy.report.init import questions, write


@pytest.fixture(scope="module")
def found(demo_root):
    return answer([demo_root])


def test_latex_has_a_line_a_group(found):
    _, summary, _ = found
    table = latex(summary)
    assert table.count(r"\\") == len(summary) + 1 and table.startswith(r"\begin{tabular}")
    assert {line.count("&") for line in table.splitlines() if "&" in line} == {8}
    assert tex("50% of a_b & #1") == r"50\% of a\_b \& \#1"


def test_codecarbon_columns_add_up(found):
    rows, _, _ = found
    lines = list(csv.DictReader(io.StringIO(codecarbon(rows))))
    assert tuple(lines[0]) == CODECARBON
    own = [r for r in rows if counts(r)]
    assert len(lines) == len(own)
    spent = sum(float(line["energy_consumed"]) for line in lines if line["energy_consumed"])
    assert spent == pytest.approx(sum(r["total_j"] for r in own if r["total_j"] is not None) / 3.6e6)
    unknown = [line for line, row in zip(lines, own, strict=True) if row["gpu_j"] is None]
    assert all(line["gpu_energy"] == "" == line["gpu_power"] for line in unknown)


def test_codecarbon_has_what_was_made_a_second_time(found):
    """Its joules were spent, as the summary's total and ``verify`` count them; a mere copy's were not."""
    rows, _, _ = found
    again = rows[0] | {"status": "duplicate", "flags": ["duplicate", "made_again"]}
    copy = rows[0] | {"status": "duplicate", "flags": ["duplicate"]}
    assert codecarbon([*rows, again, copy]).count("\n") == codecarbon(rows).count("\n") + 1


def test_commands_print_them(demo_root, capsys):
    for flag, start in (("--latex", r"\begin{tabular}"), ("--codecarbon", "timestamp,")):
        assert main(["summary", str(demo_root), flag]) == 0
        assert capsys.readouterr().out.startswith(start)


def test_init_writes_what_validates_and_plans(tmp_path, capsys):
    out = tmp_path / "mine.yaml"
    assert main(["init", "--defaults", "--out", str(out)]) == 0
    assert "total" in capsys.readouterr().out
    assert build_plan(load_config(out)).of("student_training")
    assert main(["init", "--defaults", "--out", str(out)]) == 1
    assert "exists" in capsys.readouterr().err


def test_init_with_a_users_own_models_and_data(tmp_path):
    teacher, student = tmp_path / "Big Model", tmp_path / "small"
    teacher.mkdir()
    student.mkdir()
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": []}\n')
    answers = iter([str(teacher), f"{student}, owner/tiny", str(rows), "900, 90", "FRA", "3"])
    config = write(tmp_path / "mine.yaml", questions(lambda question, default: next(answers)))
    assert config.teacher.model == "big-model" and config.students == ("small", "tiny")
    assert config.datasets["rows"].n_train == 900 and config.seeds == (0, 1, 2)
    assert yaml.safe_load((tmp_path / "mine.yaml").read_text())["models"]["tiny"]["tokenizer"] == str(teacher)


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (["no such/model/name"], "neither a folder nor a hub id"),
        (["embedded", "6, 40"], "'40' is not a number of layers"),
    ],
)
def test_init_refuses_what_cannot_be(answers, words):
    given = iter(answers)
    with pytest.raises(UserError, match=words):
        questions(lambda question, default: next(given))
