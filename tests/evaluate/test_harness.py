"""GSM8K, MMLU and IFEval through lm-evaluation-harness, offline, on hand-made rows and a tiny model."""

import json
from pathlib import Path

import pytest
import torch

from distill_energy.errors import UserError
from distill_energy.evaluate import harness, harness_data

from .support import CountingMeter, benchmarks, open_session

SAMPLES = Path(__file__).parent / "samples"

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def session():
    return open_session()


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path, session):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    session.work = tmp_path / "work"
    session.meter = CountingMeter()


def params(**given):
    return benchmarks(b={"kind": "lm_eval", **given})["b"]


def test_mmlu_accuracy_is_that_of_the_plain_logits(session):
    result = harness.lm_eval(session, "b", params(task="mmlu", data=str(SAMPLES / "mmlu"), few_shot=0))
    assert len(result.items) == 5 and result.chance == 0.25
    assert {item.extra["subject"] for item in result.items} == {"colors", "animals"}
    for item in result.items:
        rows = [json.loads(x) for x in (SAMPLES / "mmlu" / "mmlu_colors.jsonl").read_text().splitlines()]
        found = [row for row in rows if row["question"] == item.prompt]
        if not found:
            continue
        options = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", found[0]["choices"], strict=True))
        text = f"{harness_data.description('colors')}{item.prompt}{options}\nAnswer:"
        with torch.no_grad():
            logits = session.model(torch.tensor([session.encode(text)])).logits[0, -1].log_softmax(-1)
            # A continuation is " A": two tokens for a byte-level tokenizer.
            expected = []
            for letter in "ABCD":
                ids = session.encode(text + " " + letter)
                lp = session.model(torch.tensor([ids])).logits[0].log_softmax(-1)
                expected.append(float(lp[-3, ids[-2]] + lp[-2, ids[-1]]))
            assert logits.shape == (384,)
        assert item.extra["log_likelihoods"] == pytest.approx(expected, abs=1e-3)
        assert item.prediction == "ABCD"[max(range(4), key=expected.__getitem__)]
        assert item.score == float(item.prediction == item.answer)
    assert result.score == pytest.approx(sum(item.score for item in result.items) / 5)
    assert "0-shot, published as 5-shot" in result.notes and "not applied" in result.notes
    assert session.meter.tokens["processed"] > 0 and session.meter.phases["b"] > 0


def test_mmlu_examples_come_from_dev(session):
    one = params(task="mmlu", data=str(SAMPLES / "mmlu"), few_shot=1, limit=3)
    result = harness.lm_eval(session, "b", one)
    assert len(result.items) == 3 and result.facts["few_shot"] == 1
    zero = CountingMeter()
    used, session.meter = session.meter, zero
    harness.lm_eval(session, "b", one.model_copy(update={"few_shot": 0}))
    assert used.tokens["processed"] > zero.tokens["processed"]


def test_gsm8k_counts_tokens_and_reads_the_last_number(session):
    result = harness.lm_eval(
        session, "b", params(task="gsm8k", data=str(SAMPLES), few_shot=2, max_new_tokens=6, limit=2)
    )
    assert len(result.items) == 2 and result.chance == 0.0 and result.score == 0.0
    assert {item.answer for item in result.items} <= {"7", "30", "12"}
    assert all("strict_match" in item.extra for item in result.items)
    assert 0 < session.meter.tokens["generated"] <= 12
    assert "2-shot, published as 5-shot" in result.notes


def test_harness_tokens_are_exact(session):
    """What the harness feeds: a question and its continuation but the last token, once for all four; padding apart."""
    data = SAMPLES / "mmlu" / "mmlu_colors.jsonl"
    harness.lm_eval(session, "b", params(task="mmlu", data=str(data), few_shot=0, batch_size=3))
    fed = 0
    for row in (json.loads(line) for line in data.read_text().splitlines()):
        options = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True))
        text = f"{harness_data.description('colors')}{row['question']}{options}\nAnswer:"
        fed += len(session.encode(text + " A")) - 1
    assert session.meter.tokens["processed"] == fed
    assert session.meter.tokens["generated"] == 0 < session.meter.tokens["padding"] < fed


def test_gsm8k_scores_a_right_answer(session, monkeypatch):
    """The harness's own filters on given responses: the last number counts, the strict form is kept apart."""
    answers = {"Ann": "3 and 4 make 7 pens", "A box": "#### 30", "Tom": "It is 13."}

    def generate(self, requests, **kwargs):
        return [next(a for k, a in answers.items() if f"Question: {k}" in r.args[0][-90:]) for r in requests]

    model = harness._counting_model(session, 1)
    monkeypatch.setattr(type(model), "generate_until", generate)
    monkeypatch.setattr(harness, "_counting_model", lambda session, batch: model)
    result = harness.lm_eval(session, "b", params(task="gsm8k", data=str(SAMPLES), few_shot=0))
    assert {item.answer: item.score for item in result.items} == {"7": 1.0, "30": 1.0, "12": 0.0}
    assert {item.answer: item.extra["strict_match"] for item in result.items} == {"7": 0.0, "30": 1.0, "12": 0.0}
    assert result.score == pytest.approx(2 / 3)


def test_ifeval_without_punkt(session, monkeypatch):
    """Sentences and capital words are checked on a machine without nltk's data; nothing is downloaded."""
    import nltk

    def missing(*args, **kwargs):
        raise LookupError

    monkeypatch.setattr(nltk.data, "find", missing)
    answers = {
        "rivers": "They flow, and flow.",
        "lakes": "They are deep. They are cold.",
        "seas": "BIG BLUE SEAS",
    }

    def generate(self, requests, **kwargs):
        return [next(a for k, a in answers.items() if f"about {k}" in r.args[0]) for r in requests]

    model = harness._counting_model(session, 1)
    monkeypatch.setattr(type(model), "generate_until", generate)
    monkeypatch.setattr(harness, "_counting_model", lambda session, batch: model)
    result = harness.lm_eval(session, "b", params(task="ifeval", data=str(SAMPLES)))
    by_key = {item.item_id: item for item in result.items}
    assert by_key["ifeval-1"].score == 0.0
    assert by_key["ifeval-2"].score == 1.0
    assert by_key["ifeval-3"].score == 0.0
    assert by_key["ifeval-3"].extra["instructions_strict"] == [True, False]
    assert "punkt is not installed" in result.notes and "template applied" in result.notes
    # "I do not know." meets the first alone; a longer fixed answer may have two sentences as well.
    assert 1 / 3 <= result.chance <= 2 / 3


def test_ifeval_generates(session):
    result = harness.lm_eval(session, "b", params(task="ifeval", data=str(SAMPLES), max_new_tokens=4, limit=1))
    assert len(result.items) == 1 and 0 < session.meter.tokens["generated"] <= 4


@pytest.mark.parametrize(
    "given, message",
    [
        ({"task": "gsm8k", "data": "/nowhere"}, "/nowhere"),
        ({"task": "ifeval", "data": str(SAMPLES / "gsm8k_test.jsonl")}, "has no field 'key'"),
        ({"task": "mmlu", "data": str(SAMPLES / "ifeval.jsonl")}, "has no field 'question'"),
        ({"task": "gsm8k", "data": str(SAMPLES / "mmlu")}, "gsm8k"),
        ({"task": "ifeval", "data": str(SAMPLES), "few_shot": 2}, "few_shot must be 0"),
    ],
)
def test_bad_data_is_one_line(session, given, message):
    with pytest.raises(UserError, match=message):
        harness.lm_eval(session, "b", params(**given))


def test_mmlu_rows():
    row = {"question": "q", "choices": "['a', 'b', 'c', 'd']", "answer": "2"}
    assert harness_data.mmlu_row(row, Path("x"), 1) == {"question": "q", "choices": list("abcd"), "answer": 2}
    for bad in ({"choices": "['a']"}, {"answer": "7"}, {"answer": "E"}, {"choices": "import os"}):
        with pytest.raises(UserError, match="row 4"):
            harness_data.mmlu_row({**row, **bad}, Path("x"), 4)


def test_real_files(session, reference_data):
    """The published files, a few rows each."""
    folder = reference_data / "benchmarks"
    for given in (
        {"task": "mmlu", "data": str(folder / "mmlu_redux"), "limit": 6},
        {"task": "gsm8k", "data": str(folder), "limit": 1, "few_shot": 1, "max_new_tokens": 2},
        {"task": "ifeval", "data": str(folder), "limit": 2, "max_new_tokens": 2},
    ):
        result = harness.lm_eval(session, "b", params(**given))
        assert len(result.items) == given["limit"]


def test_every_ifeval_prompt_can_be_checked(reference_data):
    """All 541 prompts, sentence counts included, without punkt."""
    notes: list[str] = []
    rows = harness_data.read_rows(reference_data / "benchmarks" / "ifeval_input_data.jsonl", ("key",))
    with harness._instruction_checkers(notes):
        from lm_eval.tasks.ifeval.utils import process_results

        for row in rows:
            process_results(row, ["One sentence here. TWO there!"])
    assert len(rows) == 541 and notes
