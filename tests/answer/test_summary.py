"""The summary against sums done by hand."""

import json
import math

import factory
import pytest

from distill_energy.answer.aggregate import answer, main, read_ledger, read_summary

CONFIG = {"accounting": {"inference_reference": "teacher", "bootstrap": 200}}


@pytest.fixture(scope="module")
def demo(demo_root):
    rows, summary, problems = answer([demo_root], config=CONFIG)
    assert problems == []
    return rows, {r["label"]: r for r in summary}


def joules(rows, **wanted):
    return [r["total_j"] for r in rows if all(r[k] == v for k, v in wanted.items())]


def test_one_off_is_the_sum_of_every_stage_once(demo):
    rows, summary = demo
    row = summary["KD 12-layer"]
    trained = joules(rows, stage="student_training", pipeline="kd", student="12-layer")
    shared = 150 + 60 + 240 + 30 + 1300 + 700  # prerun, data, teacher model, student model, logits, evaluation
    assert row["e_oneoff_kwh"] * 3.6e6 == pytest.approx(shared + math.fsum(trained) / 2)
    assert row["e_marginal_kwh"] * 3.6e6 == pytest.approx(700 + math.fsum(trained) / 2)
    # 18 runs share prerun, data and the teacher's model; 6 the student's model, and 6 the logits
    parts = (150 + 60 + 240) / 18 + 30 / 6 + 1300 / 6
    assert row["e_amortised_kwh"] * 3.6e6 == pytest.approx(parts + 700 + math.fsum(trained) / 2)
    assert row["e_preprocess_kwh"] * 3.6e6 == pytest.approx(330)
    assert row["seeds"] == 2
    assert row["seed_list"] == [0, 1]


def test_the_baseline_has_no_teacher_and_shares_what_it_needs(demo):
    row = demo[1]["SFT 12-layer"]
    assert row["is_baseline"]
    assert (row["e_oneoff_kwh"] - row["e_marginal_kwh"]) * 3.6e6 == pytest.approx(150 + 60 + 240 + 30)
    assert (row["e_amortised_kwh"] - row["e_marginal_kwh"]) * 3.6e6 == pytest.approx(450 / 18 + 30 / 6)
    assert row["n_reuse"] is None
    assert row["n_star"] is None


def test_n_star_is_teacher_over_the_saving_of_the_means(demo):
    rows, summary = demo
    base = math.fsum(joules(rows, stage="student_training", pipeline="sft", student="18-layer")) / 2
    kd = math.fsum(joules(rows, stage="student_training", pipeline="kd", student="18-layer")) / 2
    row = summary["KD 18-layer"]
    assert row["n_star"] == pytest.approx(1300 / (base - kd))
    assert row["n_reuse"] == 6
    spent, instead = (math.fsum(joules(rows, stage="student_training", pipeline=p)) for p in ("kd", "sft"))
    assert row["excess_so_far"] == pytest.approx((1300 + spent) / instead - 1)
    assert row["balance_kwh"] * 3.6e6 == pytest.approx(instead - spent - 1300)
    assert row["n_star_low"] < row["n_star"] < row["n_star_high"]


def test_quality_and_fronts(demo):
    _, summary = demo
    for row in summary.values():
        assert 0 < row["q_low"] < row["q"] < row["q_high"]
        assert set(json.loads(row["q_by_benchmark"])) == set(factory.BENCHMARKS)
    assert not summary["Synthetic 18-layer"]["on_front_oneoff"]
    assert "SFT 18-layer" in summary["Synthetic 18-layer"]["dominated_by_oneoff"]
    assert summary["SFT 18-layer"]["on_front_oneoff"]


def test_idle_wasted_and_co2e(demo):
    _, summary = demo
    row = summary["KD 6-layer"]
    assert row["idle_share"] == pytest.approx(0.2)
    assert row["e_oneoff_net_kwh"] == pytest.approx(row["e_oneoff_kwh"] * 0.8)
    assert row["co2e_oneoff_g"] == pytest.approx(row["e_oneoff_kwh"] * 400)
    assert row["e_student_wasted_kwh"] == pytest.approx(
        row["e_student_kwh"] * 0.05, rel=0.1
    )  # 10 % of one of two seeds
    assert row["source"] == "estimated"


def test_t_star_against_the_teacher_uses_measured_decoding(demo):
    row = demo[1]["SFT 6-layer"]
    assert row["t_star_reference"] == "the teacher"
    assert row["t_star_batch_size"] == 8
    saving = row["j_per_token_reference"] - row["j_per_token_student"]
    training = row["e_oneoff_kwh"] - row["e_evaluation_kwh"] - row["e_prerun_kwh"]
    assert row["t_star"] == pytest.approx(training * 3.6e6 / saving)


def test_equal_quality_compares_the_energies_to_one_loss(demo):
    row = demo[1]["KD 12-layer"]
    assert row["n_star_equal_quality_status"] == "finite"
    assert row["n_star_equal_quality"] < row["n_star"]  # KD reaches SFT's loss before its own end
    assert demo[1]["Synthetic 12-layer"]["n_star_equal_quality_status"] == "never"


def test_sweeps_count_and_their_settings_are_told_apart(tmp_path):
    sweep = {"kd": [{"alpha": 0.3, "temperature": 2.0}, {"alpha": 0.7, "temperature": 2.0}]}
    root = factory.demo(tmp_path, students=("6-layer",), pipelines=("sft", "kd"), sweep=sweep)
    rows, summary, _ = answer([root])
    by_label = {r["label"]: r for r in summary}
    assert set(by_label) == {"SFT 6-layer", "KD 6-layer (α=0.3)", "KD 6-layer (α=0.7)"}
    row = by_label["KD 6-layer (α=0.3)"]
    assert row["sweep_runs"] == 4
    assert row["n_reuse"] == 4
    spent = [r["total_j"] for r in rows if r["pipeline"] == "kd"]
    assert row["e_sweep_kwh"] * 3.6e6 == pytest.approx(math.fsum(spent))


def test_runs_outside_the_configuration_leave_the_summary_but_stay_in_n(demo_root):
    rows, _, _ = answer([demo_root])
    keep = [(r["stage"], r["name"], r["version"]) for r in rows if r["student"] in (None, "6-layer")]
    _, summary, _ = answer([demo_root], current=keep)
    assert {r["student"] for r in summary} == {"6-layer"}
    assert next(r for r in summary if r["pipeline"] == "kd")["n_reuse"] == 6


def test_a_run_lacking_a_suite_has_no_total(tmp_path):
    root = factory.demo(tmp_path, students=("6-layer",), pipelines=("sft",))
    key = ("evaluation", "long-sft", "v")
    training = next((root / "student_training").glob("*/*"))
    labels = {"role": "student", "suite": "long"}
    consumed = ("student_training", training.parent.name, training.name)
    factory.stage(root, key, 5.0, labels, [consumed])
    _, summary, _ = answer([root])
    assert summary[0]["e_oneoff_kwh"] is None
    assert "not evaluated on long" in summary[0]["e_reason"]


def test_one_seed_gives_points_without_intervals(tmp_path):
    root = factory.demo(tmp_path, seeds=(0,), students=("6-layer",))
    _, summary, _ = answer([root])
    for row in summary:
        assert row["e_oneoff_low_kwh"] is None
        assert row["q_low"] is None
        assert "one seed" in row["interval_reason"]
        assert row["p_pays"] is None


def test_main_writes_what_it_computed(demo_root, tmp_path):
    out = {"ledger": tmp_path / "ledger.parquet", "summary": tmp_path / "summary.parquet", "csv": tmp_path / "s.csv"}
    lines = []
    main(demo_root, out, None, CONFIG, log=lines.append)
    rows, summary, _ = answer([demo_root], config=CONFIG)
    assert read_ledger(out["ledger"])[0] == rows
    assert read_summary(out["summary"]) == summary
    assert out["csv"].read_text().count("\n") == len(summary) + 1
    assert lines[-1] == "45 executions, 9 summary rows, 0 problems"


def test_grams_follow_the_grid_that_is_configured_now(demo_root):
    """Joules are the record: another country, another answer, nothing measured again."""
    answers = {}
    for name, energy in (
        ("none", None),
        ("world", {}),
        ("own", {"pue": 1.5, "grid": {"g_per_kwh": 100.0, "source": "us"}}),
    ):
        rows, summary, _ = answer([demo_root], config=CONFIG if energy is None else {**CONFIG, "energy": energy})
        answers[name] = (next(r for r in summary if r["label"] == "KD 6-layer"), rows[0])
    kwh = answers["none"][0]["e_oneoff_kwh"]
    assert answers["none"][0]["co2e_oneoff_g"] == pytest.approx(kwh * 400)
    assert answers["own"][0]["co2e_oneoff_g"] == pytest.approx(kwh * 150)
    assert answers["world"][0]["co2e_oneoff_g"] == pytest.approx(kwh * 475)
    assert "world average" in answers["world"][1]["grid_source"]


def test_an_artifacts_balance_is_judged_once_however_many_students_share_it(demo_root, monkeypatch):
    """Once for each row, over all rows, made the answer of 10,000 records take a minute."""
    from distill_energy.answer import summary

    asked, judged = [], summary.balance
    monkeypatch.setattr(summary, "balance", lambda *a, **k: asked.append(1) or judged(*a, **k))
    rows = answer([demo_root])[1]
    assert len(asked) == 2  # the cache and the generation
    assert len({r["balance_kwh"] for r in rows if r["pipeline"] == "kd"}) == 1
    assert all(r["balance_kwh"] is None for r in rows if r["is_baseline"])
