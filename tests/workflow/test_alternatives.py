"""Two teachers, a student that samples, a teacher that works in the training: run to the answer on tiny models."""

import shutil

import pyarrow.parquet as pq
import pytest

from distill_energy.answer.aggregate import read_summary
from distill_energy.report.sentences import headline
from distill_energy.store import sidecar as schema

from .conftest import TINY, Workflow

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alternatives(tmp_path_factory) -> Workflow:
    workflow = Workflow(tmp_path_factory.mktemp("alternatives"))
    shutil.copy(TINY, workflow.config)

    def change(data):
        data["models"]["middle"] = {"source": "pruned", "of": "big", "layers": 3}
        data["teachers"] = ["big", "middle"]
        kd = {"alpha": 0.3, "temperature": 1.0}
        data["pipelines"] = {
            "sft": {"kind": "sft"},
            "kd": {"kind": "kd", **kd},
            "offline": {"kind": "offline_policy", **kd, "teachers": ["big"]},
            "dpo": {"kind": "preference", "teachers": ["big"], "sweep": {"options.beta": [0.1, 0.5]}},
            "on_policy": {"kind": "on_policy", "teachers": ["big"], "options": {"max_new_tokens": 4}},
        }

    workflow.edit(change)
    workflow.run("results/pareto.pdf", "results/report.html")
    return workflow


@pytest.fixture(scope="module")
def summary(alternatives):
    rows = read_summary(alternatives.folder / "results" / "summary.parquet")
    return {(r["pipeline"], r["teacher"]): r for r in rows if r["is_kept"]}


def test_one_baseline_serves_both_teachers(summary):
    assert set(summary) == {
        ("sft", "big"), ("kd", "big"), ("kd", "middle"), ("offline", "big"), ("dpo", "big"), ("on_policy", "big"),
    }  # fmt: skip
    base = summary["sft", "big"]["group"]
    assert {row["baseline_group"] for row in summary.values()} == {base}
    assert {row["q_reference"] for row in summary.values()} == {"big"}
    assert all(row["q"] is not None or row["q_reason"] for row in summary.values())


def test_each_teachers_artifact_has_its_own_n(summary):
    assert (summary["kd", "big"]["n_reuse"], summary["kd", "middle"]["n_reuse"]) == (1, 1)
    assert summary["kd", "big"]["label"] != summary["kd", "middle"]["label"]
    text = "\n".join(headline(list(summary.values())))
    assert "KD from big" in text and "KD from middle" in text and "Teacher of the small student by KD" in text


def test_what_the_sampling_student_cost_is_part_of_the_artifacts(alternatives, summary):
    row, results = summary["offline", "big"], alternatives.folder / "results"
    assert row["n_reuse"] == 1 and row["n_star_status"] in ("never", "finite")

    def joules(pattern):
        return sum(schema.read(p).energy.gross_j for p in results.glob(f"{pattern}/*/energy.json"))

    parts = ["teacher_generation/*-answers", "teacher_logits/*-answers", "student_training/demo-sft-small-s0"]
    assert row["e_teacher_kwh"] * 3.6e6 == pytest.approx(sum(map(joules, parts)), rel=1e-9)


def test_pairs_and_their_log_probabilities_serve_every_setting(alternatives, summary):
    row, results = summary["dpo", "big"], alternatives.folder / "results"
    assert row["n_reuse"] == 2 and row["n_star_status"] in ("never", "finite")

    def joules(*patterns):
        return sum(schema.read(p).energy.gross_j for q in patterns for p in results.glob(f"{q}/*/energy.json"))

    artifacts = ["teacher_generation/*", "reference_logprobs/*", "student_training/demo-sft-small-s0"]
    assert row["e_teacher_kwh"] * 3.6e6 == pytest.approx(joules(*artifacts), rel=1e-9)
    (path,) = results.glob("reference_logprobs/*/*/energy.json")
    record = schema.read(path)
    assert record.tokens.loss and record.results["flops"] > 0
    (sft,) = {c.version for c in record.consumes if c.stage == "student_training"}
    started = [schema.read(p) for p in results.glob("student_training/demo-dpo*/*/energy.json")]
    assert len(started) == 2 and {r.params["pipeline"]["options"]["beta"] for r in started} == {0.1, 0.5}
    assert all(sft in {c.version for c in r.consumes} and r.results["flops"] > 0 for r in started)
    assert row["e_oneoff_kwh"] > row["e_amortised_kwh"] > row["e_marginal_kwh"] > 0
    assert row["e_campaign_kwh"] > row["e_marginal_kwh"]  # with the setting that was not kept
    assert "dpo" in "\n".join(headline(list(summary.values())))


def test_a_teacher_without_an_artifact_has_no_n_star_and_its_joules_apart(alternatives, summary):
    row = summary["on_policy", "big"]
    assert (row["n_reuse"], row["n_star"], row["n_star_status"]) == (None, None, "unknown")
    assert row["n_star_reason"] == "it reuses no teacher artifact" and row["e_campaign_kwh"] is not None
    (path,) = alternatives.folder.glob("results/student_training/demo-on_policy-*/*/energy.json")
    phases = {phase.name for phase in schema.read(path).attempts[0].phases}
    assert {"student_sampling", "teacher_scoring", "load"} <= phases


def test_every_joule_is_still_in_one_place(alternatives):
    results = alternatives.folder / "results"
    places = pq.read_table(results / "where_it_went.parquet").to_pandas()
    ledger = pq.read_table(results / "ledger.parquet").to_pandas()
    assert places.joules.sum() == pytest.approx(ledger.total_j.sum(), rel=1e-9)
    assert set(places.place) <= {"own", "shared", "selection"}
    scored = places[places.stage == "reference_logprobs"]
    assert set(scored.place) == {"shared"} and len(set(scored.run)) == 1  # the kept setting's
