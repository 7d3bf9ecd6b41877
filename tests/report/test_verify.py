"""``distill-energy verify``: whole results pass, every kind of damage is named with a status of 1."""

import shutil

import pytest

from distill_energy.__main__ import main


@pytest.fixture
def root(demo_root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(demo_root, tmp_path / "results")
    return tmp_path / "results"


def test_whole_results_pass(root, capsys):
    assert main(["verify", str(root)]) == 0
    said = capsys.readouterr().out
    assert "45 executions" in said and said.rstrip().endswith("whole") and "every one in one place" in said


def evaluation_deleted(root):
    shutil.rmtree(next((root / "evaluation").glob("quick-instructions-kd-*/*")))


def gross_times_ten(root):
    path = next((root / "student_training").glob("*/*/energy.json"))
    text = path.read_text()
    first = text.index('"gross_j": ', text.index('"energy": {'))
    path.write_text(text[:first] + '"gross_j": 9' + text[first + len('"gross_j": ') :])


def truncated(root):
    path = next((root / "teacher_logits").glob("*/*/energy.json"))
    path.write_text(path.read_text()[:200])


def consumed_gone(root):
    shutil.rmtree(root / "teacher_logits")


@pytest.mark.parametrize("damage", [gross_times_ten, truncated, consumed_gone])
def test_damage_is_named_and_ends_with_1(root, capsys, damage):
    damage(root)
    assert main(["verify", str(root), "--repair"]) == 1
    said = capsys.readouterr().out
    assert "wrong: " in said and "rm " in said and "Traceback" not in said


def test_an_evaluation_that_was_deleted_while_the_report_stands_is_found(root, capsys):
    from distill_energy.answer.aggregate import answer
    from distill_energy.answer.aggregate import main as aggregate

    rows, _, _ = answer([root])
    current = [[r["stage"], r["name"], r["version"]] for r in rows]
    out = {"ledger": root / "ledger.parquet", "summary": root / "summary.parquet", "csv": root / "summary.csv"}
    aggregate(root, out, current, None, log=lambda line: None)
    assert main(["verify", str(root)]) == 0
    evaluation_deleted(root)
    assert main(["verify", str(root)]) == 1
    assert "planned, but it has no accepted sidecar" in capsys.readouterr().out


def test_a_folder_without_records_is_one_line(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
