"""Cases in which an earlier answer contradicted itself, by hand, through the same door as a user's results."""

import json
import math

import factory
import pytest

from distill_energy.__main__ import main as command
from distill_energy.answer.aggregate import answer, judge, main, read_summary
from distill_energy.ledger.build import make_attempt, write_attempt
from distill_energy.ledger.rows import counts
from distill_energy.report.sentences import detail, headline, sentence
from distill_energy.store import teacher_store
from distill_energy.store.sidecar import read

DATA = ("preprocess", "data-d", "d0")


def cached(root, name, joules):
    key = ("teacher_logits", "t-d", name)
    factory.stage(root, key, joules, {"teacher": "t", "dataset": "d"}, [DATA])
    return key


def trained(root, pipeline, student, joules, cache=None, setting=None, seeds=(0, 1)):
    setting = setting or {}
    group = factory.short(pipeline, student, setting)
    for seed in seeds:
        version = factory.short(group, seed)
        labels = {"teacher": "t", "dataset": "d", "pipeline": pipeline, "student": student, "seed": seed}
        labels |= {"hyperparameters": setting, "group": group, "run": version, "role": "student"}
        labels |= {"baseline_group": factory.short("sft", student, {})}
        key = ("student_training", f"d-{pipeline}-{student}-s{seed}", version)
        factory.stage(root, key, joules + seed, labels, [DATA, *([cache] if cache else [])], seed=seed)


def two_artifacts(root):
    """A cheap cache that three students use (it has paid), and a dear one that one of them uses too (it has not)."""
    factory.stage(root, DATA, 10.0, {"dataset": "d"})
    cheap, dear = cached(root, "cheap", 100.0), cached(root, "dear", 9000.0)
    for student in ("a", "b", "c"):
        trained(root, "sft", student, 1000.0)
        trained(root, "kd", student, 900.0, cheap)
    trained(root, "kd2", "a", 905.0, dear)


def test_two_artifacts_with_different_n_have_each_a_balance_that_agrees_with_itself(tmp_path):
    two_artifacts(tmp_path)
    _, summary, problems = answer([tmp_path])
    assert problems == []
    by = {(r["pipeline"], r["student"]): r for r in summary}
    assert {by["kd", s]["n_reuse"] for s in "abc"} == {6} and by["kd2", "a"]["n_reuse"] == 2
    # Six savings of 100 J less 100 J; two of 95 J less 9,000 J.
    assert [by["kd", s]["balance_kwh"] * 3.6e6 for s in "abc"] == pytest.approx([500] * 3)
    assert by["kd2", "a"]["balance_kwh"] * 3.6e6 == pytest.approx(2 * 95 - 9000)
    for row in (r for r in summary if not r["is_baseline"]):
        paid = row["balance_kwh"] >= 0
        assert (row["excess_so_far"] < 0) == paid == (row["p_pays"] > 0.5) == (row["more_reuses"] == 0)
        said = " ".join((sentence(row, summary), detail(row, summary) or ""))
        assert ("less than SFT so far" in said) == paid
    told = {line.split(":")[0]: line for line in headline(summary)}
    assert "it has paid" in told["KD"] and "below" not in told["KD"].split("probability")[1]


def test_four_abandoned_runs_cheapen_nothing(tmp_path):
    """They stay in N, as consumers; their joules are abandoned, and the amortised energy does not move."""
    factory.stage(tmp_path, DATA, 10.0, {"dataset": "d"})
    cache = cached(tmp_path, "c", 3000.0)
    trained(tmp_path, "sft", "a", 1000.0)
    trained(tmp_path, "kd", "a", 900.0, cache)
    before, _ = judge([tmp_path])
    listed = [(r["stage"], r["name"], r["version"]) for r in before.rows]
    alone = next(r for r in answer([tmp_path], current=listed)[1] if r["pipeline"] == "kd")
    for alpha in (0.1, 0.9):
        trained(tmp_path, "kd", "a", 950.0, cache, {"alpha": alpha})
    found, _ = judge([tmp_path], current=listed)
    after = next(r for r in answer([tmp_path], current=listed)[1] if r["pipeline"] == "kd")
    assert (alone["n_reuse"], after["n_reuse"]) == (2, 6)
    for view in ("oneoff", "amortised", "marginal"):
        assert after[f"e_{view}_kwh"] == alone[f"e_{view}_kwh"]
    abandoned = [p["joules"] for p in found.places if p["place"] == "abandoned"]
    assert math.fsum(abandoned) == pytest.approx(2 * (950 + 951))
    assert after["campaign_total_kwh"] * 3.6e6 == pytest.approx(alone["campaign_total_kwh"] * 3.6e6 + 2 * (950 + 951))
    assert after["balance_kwh"] < alone["balance_kwh"]


def crowded(root, store):
    """The demo with an orphan, a duplicate in the store, and another workflow's run of the same cache."""
    factory.demo(root, students=("6-layer",))
    (folder,) = (root / "teacher_logits").glob("*/*")
    key = ("teacher_logits", folder.parent.name, folder.name)
    factory.stage(store, key, 777.0, start_utc="2026-11-25T00:00:00Z")
    attempt = make_attempt(factory.components(55.0), host="h", wall_s=9.0, outcome="killed", reason="killed")
    labels = {"teacher": factory.TEACHER, "dataset": factory.DATASET, "pipeline": "kd", "student": "6-layer", "seed": 0}
    write_attempt(root, ("student_training", "instructions-kd-6-layer-s0", "lost"), attempt, labels)
    theirs = next(r for p in root.glob("student_training/*kd*/*/energy.json") if (r := read(p)).seed == 0)
    changed = json.loads(theirs.model_dump_json())
    changed |= {"name": "theirs-kd-s9", "version": "f" * 10}
    teacher_store.register(store, theirs.model_validate(changed), root.parent / "elsewhere")
    return folder


@pytest.mark.parametrize("listed", [False, True])
def test_workflow_and_command_line_treat_orphans_duplicates_and_others_alike(tmp_path, capsys, listed):
    root, store = tmp_path / "results", tmp_path / "store"
    crowded(root, store)
    out = {"ledger": root / "ledger.parquet", "summary": root / "summary.parquet", "csv": root / "summary.csv"}
    current = [[r["stage"], r["name"], r["version"]] for r in answer([root])[0]] if listed else None
    main(root, out, current, {"accounting": {"bootstrap": 200}}, [store], log=lambda line: None)
    assert command(["summary", str(root), "--csv"]) == 0
    assert capsys.readouterr().out.splitlines() == out["csv"].read_text().splitlines()
    written = read_summary(out["summary"])
    study, problems = judge([root, store], current=current, config={"accounting": {"bootstrap": 200}})
    assert {p.kind for p in problems} >= {"orphan", "duplicate"}
    spent = math.fsum(r["total_j"] for r in study.rows if counts(r))
    assert math.fsum(p["joules"] for p in study.places) == pytest.approx(spent, rel=1e-12)
    kinds = {r["status"] for r in study.rows}
    assert kinds == {"ok", "orphan", "duplicate", "elsewhere"}
    kd = next(r for r in written if r["pipeline"] == "kd")
    assert kd["n_reuse"] == 3  # two of ours, one of theirs
    assert kd["e_sweep_kwh"] * 3.6e6 == pytest.approx(
        math.fsum(r["total_j"] for r in study.rows if r["pipeline"] == "kd" and r["status"] in ("ok", "orphan"))
    )


def test_the_summary_command_needs_no_configuration_to_have_a_q(demo_root, capsys):
    """An inference benchmark is no benchmark of quality, whoever asks."""
    assert command(["summary", str(demo_root)]) == 0
    out = capsys.readouterr().out
    assert "inference" not in out and "Q = unknown" not in out
    assert all(r["q"] is not None for r in answer([demo_root])[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["results"].update(precision="float32"), "float32"),
        (lambda d: d["hardware"].update(gpus=[{"uuid": "g", "name": "NVIDIA H200"}]), "1× NVIDIA H200"),
        (lambda d: d["software"]["packages"].update(torch="3.0.1"), "torch 3"),
        (lambda d: d["software"]["packages"].update(torch="2.14.0"), None),  # a minor version is the same class
    ],
)
def test_what_ran_otherwise_is_not_compared(tmp_path, change, words):
    """SFT at 0.0264 J/token and KD at 0.0244 with the same tokens were other kernels and no distillation."""
    two_artifacts(tmp_path)
    for path in tmp_path.glob("student_training/d-kd-a-*/*/energy.json"):
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))
    row = next(r for r in answer([tmp_path])[1] if (r["pipeline"], r["student"]) == ("kd", "a"))
    if words is None:
        assert row["n_star"] is not None
    else:
        assert row["n_star"] is None and "different classes" in row["n_star_reason"] and words in row["n_star_reason"]
        assert row["balance_kwh"] is None and row["campaign_excess"] is None
