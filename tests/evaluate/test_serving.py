"""Served inference with transformers: workloads, token counts, J/answer, and what is derived."""

import json

import pyarrow.parquet as pq
import pytest

from distill_energy.answer.inference import common_cell, read_inference
from distill_energy.config.evaluation import Inference
from distill_energy.errors import UserError
from distill_energy.evaluate import serving, stage
from distill_energy.evaluate.generate import generate, thinking_tokens

from .support import CountingMeter, benchmarks, context, open_session

COST = {"kind": "inference", "workload": "held_out", "requests": 5, "new_tokens": 6, "min_seconds": 0}


def rows_of(tmp_path, meter=None, **changes):
    names = benchmarks(cost={**COST, "concurrency": [2, "saturated"], **changes})
    ctx = context(tmp_path, names, meter=meter)
    stage.main(ctx)
    return pq.read_table(ctx.out / "inference.parquet").to_pylist(), ctx


def test_a_workload_gives_joules_a_token_and_an_answer(tmp_path):
    meter = CountingMeter()
    rows, ctx = rows_of(tmp_path, meter)
    assert [(r["phase"], r["batch_size"], r["saturated"]) for r in rows] == [
        (phase, size, saturated)
        for size, saturated in ((2, False), (5, True))
        for phase in ("prefill", "served", "decode")
    ]
    for prefill, served, decode in (rows[:3], rows[3:]):
        assert prefill["tokens"] == prefill["prompt_tokens"] == served["prompt_tokens"] > 5 * 5
        assert 5 <= served["generated_tokens"] <= 30
        assert served["j_per_token"] == pytest.approx(served["joules"] / served["generated_tokens"])
        assert served["j_per_answer"] == pytest.approx(served["joules"] / 5)
        assert decode["derived"]
        if decode["joules"] is not None:
            assert decode["joules"] == pytest.approx(served["joules"] - prefill["joules"])
        else:
            assert decode["reason"]
    made = sum(r["generated_tokens"] for r in rows if r["phase"] == "served")
    warm = meter.tokens["generated"] - made - 2 * 5  # two prefills of a token each
    assert 2 <= warm <= 12
    assert read_inference(ctx.out)["served", 2] == pytest.approx(rows[1]["j_per_token"])


def test_an_answer_of_a_workload_ends_where_the_model_ends_it(tmp_path):
    """The same requests with every token an end token cost one token an answer."""
    session = open_session()
    session.__dict__["stop_ids"] = list(range(384))
    prompts, fixed = serving.workload(session, Inference(**COST | {"prompts": 1, "prompt_tokens": 4}))
    assert not fixed and len(prompts) == 5
    ids = {prompt.prompt_ids for prompt in prompts}
    assert len(ids) == 5


def test_a_files_prompts_are_the_requests(tmp_path):
    path = tmp_path / "asked.jsonl"
    rows = [{"prompt": "How far is it?"}, {"messages": [{"role": "user", "content": "And how dear?"}]}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    session = open_session()
    prompts, _ = serving.workload(session, Inference(**COST | {"workload": str(path)}))
    assert [p.prompt_ids for p in prompts] == [
        tuple(session.prompt_ids("How far is it?")),
        tuple(session.prompt_ids("And how dear?")),
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "row 1: not JSON"),
        ('{"prompt": "a"}\n{"question": "b"}', "row 2: neither prompt nor messages"),
        ("", "no row"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_workload_is_named_with_its_row(tmp_path, text, message):
    path = tmp_path / "asked.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        serving.read_prompts(path, 8)
    assert "asked.jsonl" in str(caught.value)


def test_thinking_is_counted_apart_and_is_no_part_of_the_text():
    session = open_session()
    end = 17
    session.__dict__["thinking_end"] = end
    session.__dict__["stop_ids"] = [2]
    assert thinking_tokens(session, [5, 6, end, 7, 8]) == 3
    assert thinking_tokens(session, [5, 6, 7]) == 0
    session.__dict__["thinking_end"] = None
    assert thinking_tokens(session, [5, end]) == 0


def test_what_a_thinking_model_says_after_its_thinking_is_its_answer(monkeypatch):
    session = open_session()
    session.__dict__["stop_ids"] = [2]
    thought, said = session.encode("42 or 43? "), session.encode("43")
    end = session.encode("\n")[-1]  # stands for </think>
    session.__dict__["thinking_end"] = end
    monkeypatch.setattr(
        session, "engine", type("E", (), {"serve": lambda *a, **k: [{"ids": [*thought, end, *said, 2]}]})()
    )
    (done,) = generate(session, [session.encode("Which?")], 40)
    assert done.text == "43"
    assert done.thinking == len(thought) + 1
    assert done.tokens == len(thought) + 1 + len(said) + 1


def test_served_tokens_come_before_an_eager_loops():
    eager = {("decode", 8): 0.2, ("prefill", 8): 0.1}
    served = {("served", 8): 0.02, ("served", 32): 0.01, ("decode", 8): 0.02}
    assert common_cell([[served], [served, served]]) == ("served", 32)
    assert common_cell([[served], [eager]]) == ("decode", 8)
    assert common_cell([[served], [{("prefill", 8): 0.1}]]) is None
    assert common_cell([[served], []]) is None
