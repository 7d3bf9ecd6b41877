"""The answer in words, and the command that prints it."""

import re

import pytest

from distill_energy.__main__ import main
from distill_energy.answer.aggregate import answer
from distill_energy.report.sentences import detail, energy, headline, lead, line, sentence, serving


@pytest.fixture(scope="module")
def summary(demo_root):
    return answer([demo_root], config={"accounting": {"bootstrap": 200, "inference_reference": "teacher"}})[1]


def test_each_group_gets_one_sentence_with_its_own_numbers(summary):
    for row in summary:
        text = sentence(row, summary)
        assert row["student"] in text
        if row["n_star_status"] == "finite":
            assert re.search(r"pays back after \d+ reuses? \(95\u202f% interval: \d+ to \d+\)", text)
            assert f"you have {row['n_reuse']}" in text
            assert "ΔQ" in detail(row, summary)


def changed(row, **values):
    return {**row, **values}


def test_never_and_undecided_print_no_count(summary):
    row = next(r for r in summary if r["pipeline"] == "kd")
    rows = [r for r in summary if r is not row]
    never = changed(row, n_star=None, n_star_low=None, n_star_high=None, n_star_status="never", delta_q=None)
    text = sentence(never, [*rows, never])
    assert "never pays back" in text
    assert "-" not in text.split("you have")[0].replace("6-layer", "")
    open_end = changed(row, n_star=None, n_star_low=4.2, n_star_high=None, n_star_status="undecided")
    text = sentence(open_end, [*rows, open_end])
    assert "undecided" in text
    assert "5 reuses to never" in text


def test_never_from_one_seed_is_qualified(summary):
    row = next(r for r in summary if r["pipeline"] == "kd")
    rows = [r for r in summary if r is not row]
    alone = changed(row, n_star=None, n_star_status="never", saving_high_kwh=None)
    assert "never pays back (from one seed, without an interval)" in sentence(alone, [*rows, alone])
    assert "(from one seed, without an interval)" in line(alone, [*rows, alone])
    told = changed(alone, saving_high_kwh=1.0)
    assert "one seed" not in sentence(told, [*rows, told]) + line(told, [*rows, told])


def test_the_lead_names_every_way_to_distil_and_one_unit_is_used(summary):
    text = lead(summary)
    assert text.startswith("Counted whole, ") and "KD" in text and "Synthetic" in text and text.count(".") == 1
    words = " ".join(sentence(row, summary) for row in summary) + " ".join(headline(summary))
    assert set(re.findall(r"\d (k?Wh|mWh|J)\b", words)) == {"Wh"}
    assert lead([]) is None


def test_unknown_says_why(summary):
    row = next(r for r in summary if r["pipeline"] == "kd")
    unknown = changed(row, n_star=None, n_star_status="unknown", n_star_reason="the teacher's energy is unknown")
    assert "because the teacher's energy is unknown" in sentence(unknown, summary)


def test_serving_names_the_reference(summary):
    assert "instead of the teacher" in serving(summary[0])


@pytest.mark.parametrize(
    ("kwh", "text"), [(7.0, "7.00 kWh"), (5.5e-4, "0.550 Wh"), (2e-5, "20.0 mWh"), (None, "an unknown energy")]
)
def test_units(kwh, text):
    assert energy(kwh) == text


def test_summary_command_reads_results_without_snakemake(demo_root, capsys):
    assert main(["summary", str(demo_root)]) == 0
    printed = capsys.readouterr().out
    assert "KD for the 12-layer student pays back after" in printed
    assert "45 executions spent" in printed


def test_summary_command_names_a_folder_without_results(tmp_path, capsys):
    assert main(["summary", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert main(["summary", str(tmp_path / "none")]) == 1


def test_replay_command_writes_the_papers_figures(repo, tmp_path, capsys):
    from distill_energy.report.paper import FILES

    assert main(["replay", str(repo / "configs" / "paper_table.yaml"), str(tmp_path / "paper")]) == 0
    assert set(FILES) <= {p.name for p in (tmp_path / "paper").iterdir()}
    printed = capsys.readouterr().out
    assert printed.count("agrees") == 10
    assert printed.count("DIFFERS (within the range only as whole reuses") == 1
    assert printed.splitlines()[-1].startswith("10 of 11 published values agree; 9 comparisons are independent")


def test_summary_command_follows_the_last_aggregate_unless_told(demo_root, tmp_path, capsys):
    import shutil

    from distill_energy.answer.aggregate import main as aggregate

    root = shutil.copytree(demo_root, tmp_path / "results")
    rows, _, _ = answer([root])
    keep = [(r["stage"], r["name"], r["version"]) for r in rows if r["student"] in (None, "6-layer")]
    out = {"ledger": root / "ledger.parquet", "summary": root / "summary.parquet", "csv": root / "summary.csv"}
    aggregate(root, out, keep, None, log=lambda _: None)
    assert main(["summary", str(root)]) == 0
    assert "12-layer" not in capsys.readouterr().out
    assert main(["summary", str(root), "--all"]) == 0
    assert "12-layer" in capsys.readouterr().out
