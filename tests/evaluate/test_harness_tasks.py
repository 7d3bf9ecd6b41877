"""Any task of the harness by its name, and tasks of the user's own by their YAML, offline."""

import json

import pytest
from pydantic import ValidationError

from distill_energy.config.evaluation import Evaluation
from distill_energy.errors import UserError
from distill_energy.evaluate import harness, harness_tasks
from distill_energy.preflight import Found, _check_benchmark

from .support import CountingMeter, benchmarks, open_session

pytest.importorskip("lm_eval")

CHOICE = """
task: my_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
ANSWER = """
task: my_answer
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
generation_kwargs: {{until: ["\\n"], max_gen_toks: 6}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
  - {{metric: bleu, aggregation: bleu, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def session():
    return open_session()


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path, session):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    session.work, session.meter = tmp_path / "work", CountingMeter()


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "tasks"
    place.mkdir()
    rows = [{"question": f"{a}+1=", "choices": [str(a + 1), str(a), "no"], "label": 0, "answer": str(a + 1)}
            for a in range(4)]  # fmt: skip
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choice", CHOICE), ("answer", ANSWER)):
        (place / f"{name}.yaml").write_text(text.format(rows=place / "rows.jsonl"))
    return str(place)


def params(**given):
    return benchmarks(b={"kind": "lm_eval", **given})["b"]


def test_ones_own_choices_are_scored_by_likelihood(session, folder):
    result = harness.lm_eval(session, "b", params(task="my_choice", include_path=folder))
    assert len(result.items) == 4 and result.chance == pytest.approx(1 / 3)
    assert result.score == pytest.approx(sum(i.score for i in result.items) / 4)
    assert all(i.score in (0.0, 1.0) and i.prompt == f"{n}+1=" for n, i in enumerate(result.items))
    assert "metric acc;" in result.notes and result.facts["few_shot"] == 0
    assert session.meter.tokens["processed"] > 0 and session.meter.phases["b"] > 0


def test_ones_own_answers_are_generated_and_a_corpus_metric_is_not_taken(session, folder):
    asked = params(task="my_answer", include_path=folder, limit=2, few_shot=1, max_new_tokens=3)
    result = harness.lm_eval(session, "b", asked)
    assert len(result.items) == 2 and result.chance == 0.0 and result.facts["few_shot"] == 1
    assert "metric exact_match;" in result.notes
    assert 0 < session.meter.tokens["generated"] <= 6
    with pytest.raises(UserError, match="exact_match of the task's exact_match, bleu; metric 'bleu' is not among them"):
        harness.lm_eval(session, "b", params(task="my_answer", include_path=folder, metric="bleu"))


def test_metric_filter_and_chance_may_be_given(session, folder):
    asked = params(task="my_choice", include_path=folder, metric="acc_norm", chance=0.4)
    result = harness.lm_eval(session, "b", asked)
    assert result.chance == 0.4 and "metric acc_norm;" in result.notes
    with pytest.raises(UserError, match="filter 'strict' is none of the task's: none"):
        harness.lm_eval(session, "b", params(task="my_choice", include_path=folder, filter="strict"))


def test_a_metric_that_is_better_when_lower_is_not_taken():
    rows = [{"filter": "none", "metrics": ["word_perplexity", "acc"], "word_perplexity": 3.0, "acc": 1, "task": "t"}]
    better = {"t": {"word_perplexity": False, "acc": True}}
    assert harness_tasks.choose(rows, better, None, None) == ("acc", "none")
    with pytest.raises(UserError, match="better when higher: none of the task's word_perplexity"):
        harness_tasks.choose([{**rows[0], "metrics": ["word_perplexity"]}], better, None, None)


def test_the_harness_own_task_is_found_by_name_and_a_slip_is_corrected():
    manager = harness_tasks.manager_of("hellaswag", None)
    assert "hellaswag" in manager.all_tasks
    with pytest.raises(UserError, match=r"no task 'hellaswagg' \(did you mean hellaswag\?\)"):
        harness_tasks.manager_of("hellaswagg", None)
    with pytest.raises(UserError, match="include_path /no/where is not a folder"):
        harness_tasks.manager_of("x", "/no/where")


def test_preflight_knows_a_missing_folder_and_a_damaged_row(tmp_path, folder):
    def wrong(**given):
        found = Found()
        evaluation = Evaluation.model_validate({"benchmarks": {"b": given}})
        _check_benchmark(found, "b", evaluation.benchmarks["b"])
        return found.wrong

    assert not wrong(kind="lm_eval", task="my_choice", include_path=folder)
    assert "does not exist" in wrong(kind="lm_eval", task="my_choice", include_path="/no/where")[0]
    (tmp_path / "bad.jsonl").write_text('{"messages": []}\n')
    assert "bad.jsonl, row 1" in wrong(kind="reference", data=str(tmp_path / "bad.jsonl"))[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [({"task": "gsm8k", "metric": "x"}, "scored as published"), ({"task": "arc_easy", "data": "x"}, "include_path")],
)
def test_what_does_not_go_together_is_refused(given, words):
    with pytest.raises(ValidationError, match=words):
        Evaluation.model_validate({"benchmarks": {"b": {"kind": "lm_eval", **given}}})
