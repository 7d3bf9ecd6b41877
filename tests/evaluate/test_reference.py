"""The user's own answers as a benchmark: likelihood, exact match, judged; of a data set's validation rows or a file."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from distill_energy.config import parse_config
from distill_energy.config.evaluation import Evaluation
from distill_energy.config.load import read_yaml
from distill_energy.data.chat import encode
from distill_energy.data.stage import schema
from distill_energy.errors import UserError
from distill_energy.evaluate.reference import load, reference
from distill_energy.plan import build_plan

from .server import chat_server, completion
from .support import CountingMeter, benchmarks, open_session

ROWS = [
    {"prompt": "What is the capital of Portugal?", "response": "Lisbon"},
    {"prompt": "What is the capital of France?", "response": "Paris, of course"},
    {"prompt": "And of Spain?", "response": "Madrid", "system": "Be short."},
]


@pytest.fixture(scope="module")
def session():
    return open_session()


@pytest.fixture(autouse=True)
def fresh(session, tmp_path):
    session.work, session.meter = tmp_path / "work", CountingMeter()
    session.spent.clear()


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "held-out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def params(**given):
    return benchmarks(b={"kind": "reference", **given})["b"]


def test_likelihood_is_that_of_the_plain_logits(session, data):
    result = reference(session, "b", params(data=data, format="prompt_response"))
    for item, row in zip(result.items, ROWS, strict=True):
        turns = [{"role": "system", "content": row["system"]}] if "system" in row else []
        turns += [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        found = encode(session.tokenizer, turns, stops=session.stop_ids)
        with torch.no_grad():
            logs = session.model(torch.tensor([found.input_ids])).logits[0].float().log_softmax(-1)
        start = len(found.prompt_ids)
        gains = [float(logs[t - 1, found.input_ids[t]]) for t in range(start, len(found.input_ids))]
        assert item.score == pytest.approx(math.exp(sum(gains) / len(gains)), rel=1e-4)
        assert item.tokens == len(gains) and item.answer == row["response"]
    assert result.chance == pytest.approx(1 / 384)
    assert session.meter.tokens["processed"] > 0 and session.meter.phases["b"] > 0


def test_validation_rows_are_scored_as_they_were_tokenised(session, tmp_path):
    """The first answer of each row, and its whole context; a second turn is not asked."""
    turns = [("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2")]
    found = encode(session.tokenizer, [{"role": r, "content": c} for r, c in turns], stops=session.stop_ids)
    row = {"id": "x", "prompt": "One?", "response": "1", "input_ids": found.input_ids, "loss_mask": found.loss_mask}
    pq.write_table(
        pa.Table.from_pylist([{**row, "prompt_ids": found.prompt_ids}], schema=schema()),
        tmp_path / "validation.parquet",
    )
    session.inputs = {"validation-mine": tmp_path}
    (pair,) = load(session, "b", params(dataset="mine"))
    assert pair.prompt_ids == found.prompt_ids
    assert session.tokenizer.decode(pair.response_ids).startswith("1")
    assert "2" not in session.tokenizer.decode(pair.response_ids)
    result = reference(session, "b", params(dataset="mine"))
    assert [item.item_id for item in result.items] == ["x"] and 0 < result.score < 1


def test_exact_match_forgives_case_and_white_space_and_knows_the_commonest_answer(session, data, monkeypatch):
    from distill_energy.evaluate import reference as module
    from distill_energy.evaluate.generate import Completion

    texts = [" lisbon ", "Paris,  of\nCourse", "Barcelona"]
    monkeypatch.setattr(module, "generate", lambda *a, **k: [Completion(t, 3, "stop") for t in texts])
    result = reference(session, "b", params(data=data, format="prompt_response", score="exact_match"))
    assert [item.score for item in result.items] == [1.0, 1.0, 0.0]
    assert result.chance == 0.0
    with open(data, "a") as handle:
        handle.write(json.dumps({"prompt": "Which city?", "response": "lisbon"}) + "\n")
    texts.append("Lisbon")
    assert reference(session, "b", params(data=data, format="prompt_response", score="exact_match")).chance == 0.5


def test_exact_match_really_generates(session, data):
    asked = params(data=data, format="prompt_response", score="exact_match", max_new_tokens=4, items=2)
    result = reference(session, "b", asked)
    assert len(result.items) == 2 and 0 < session.meter.tokens["generated"] <= 8


def test_judged_against_the_reference_by_an_endpoint(session, data):
    with chat_server(lambda body: completion("A")) as (url, _):
        judge = {"kind": "openai", "model": "j", "base_url": url}
        asked = params(data=data, format="prompt_response", score="judged", judge=judge, max_new_tokens=4)
        result = reference(session, "b", asked)
    assert len(result.items) == 3 and result.chance == 0.0 and 0 <= result.score <= 1
    assert {item.answer for item in result.items} == {row["response"] for row in ROWS}


def test_a_row_that_cannot_be_used_stops_the_benchmark_and_is_named(session, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": ""}\n')
    with pytest.raises(UserError, match=r"bad.jsonl, row 2: an answer is empty"):
        reference(session, "b", params(data=str(path), format="prompt_response"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "either dataset"),
        ({"data": "x", "dataset": "y"}, "either dataset"),
        ({"dataset": "y", "format": "messages"}, "format"),
        ({"data": "x", "score": "judged"}, "judge"),
        ({"data": "x", "judge": {"kind": "local", "model": "m"}}, "judge"),
        ({"data": "x", "score": "judged", "judge": {"kind": "local", "model": "m"}, "in_quality": True}, "proxy"),
    ],
)
def test_what_does_not_go_together_is_refused(given, words):
    with pytest.raises(ValidationError, match=words):
        Evaluation.model_validate({"benchmarks": {"b": {"kind": "reference", **given}}})


def test_a_local_judge_stays_outside_q():
    asked = params(data="x", score="judged", judge={"kind": "local", "model": "m"})
    assert asked.in_quality is False


def test_the_plan_hands_the_validation_rows_to_teacher_and_students_and_hashes_a_file(repo, tmp_path):
    config = read_yaml(repo / "configs" / "smoke.yaml")
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "a", "response": "b"}\n')
    config["evaluation"] = {
        "benchmarks": {
            "rows": {"kind": "reference", "dataset": "demo"},
            "file": {"kind": "reference", "data": str(own), "format": "prompt_response"},
        },
        "suites": {"mine": ["rows", "file"]},
    }
    plan = build_plan(parse_config(config))
    nodes = plan.of("evaluation")
    assert all(any(i.role == "validation-demo" for i in node.consumes) for node in nodes) and len(nodes) > 1
    before = {node.version for node in nodes}
    own.write_text('{"prompt": "a", "response": "c"}\n')
    assert before.isdisjoint({node.version for node in build_plan(parse_config(config)).of("evaluation")})
    config["evaluation"]["benchmarks"]["rows"]["dataset"] = "demmo"
    with pytest.raises(UserError, match=r"evaluation\.benchmarks\.rows\.dataset: 'demmo' is not one of demo"):
        parse_config(config)
