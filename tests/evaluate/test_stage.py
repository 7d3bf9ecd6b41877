"""The evaluation stage on a tiny model: tables, roles, failures, tokens."""

import json

import pyarrow.parquet as pq
import pytest

from distill_energy.answer.inference import read_inference
from distill_energy.answer.quality import read_scores
from distill_energy.errors import UserError
from distill_energy.evaluate import stage
from distill_energy.evaluate.result import prompt_id

from .support import CountingMeter, benchmarks, context

SUITE = benchmarks(
    gold={"kind": "gold_accuracy", "items": 6},
    same={"kind": "agreement", "items": 6},
    choice={"kind": "choice", "items": 8},
    sums={"kind": "arithmetic", "items": 3, "max_new_tokens": 4},
    form={"kind": "instructions", "items": 3, "max_new_tokens": 4},
    cost={
        "kind": "inference",
        "batch_sizes": [1, 3],
        "prompts": 2,
        "prompt_tokens": 8,
        "new_tokens": 3,
        "min_seconds": 0,
    },
)


def rows_of(path):
    return pq.read_table(path).to_pylist()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    ctx = context(tmp_path_factory.mktemp("teacher"), SUITE)
    return ctx, stage.main(ctx)


@pytest.fixture(scope="module")
def student(tmp_path_factory, teacher):
    ctx = context(
        tmp_path_factory.mktemp("student"),
        SUITE,
        role="student",
        inputs={"teacher_evaluation": teacher[0].out},
        seed=1,
    )
    return ctx, stage.main(ctx)


def test_tables(teacher):
    ctx, results = teacher
    json.dumps(results, allow_nan=False)
    items = rows_of(ctx.out / "items.parquet")
    scores = {row["benchmark"]: row for row in rows_of(ctx.out / "scores.parquet")}
    assert set(scores) == set(SUITE)
    for name in ("gold", "same", "choice", "sums", "form"):
        own = [row for row in items if row["benchmark"] == name]
        assert len(own) == scores[name]["n"] == SUITE[name].items
        assert len({row["item_id"] for row in own}) == len(own)
        assert all(row["tokens"] > 0 and len(row["prompt_id"]) == len(prompt_id("")) for row in own)
        assert scores[name]["score"] == pytest.approx(sum(row["score"] for row in own) / len(own))
        if name == "same":  # shares the pass of ``gold``
            assert scores[name]["seconds"] is None and scores[name]["joules"] is None
            assert "shares" in scores[name]["joules_reason"]
        else:
            assert scores[name]["seconds"] > 0 and scores[name]["joules"] > 0
        assert scores[name]["status"] in ("ok", "unusable") and scores[name]["contaminated"] is None
    assert scores["cost"]["score"] is None and not scores["cost"]["in_quality"]
    assert read_scores(ctx.out)["gold"].chance == scores["gold"]["chance"] > 0


@pytest.mark.parametrize(("names", "least"), [(("cost",), 0.99), (("gold", "choice", "sums"), 0.5)])
def test_operations_are_those_that_torch_counts_less_the_padding(tmp_path, monkeypatch, names, least):
    from torch.utils.flop_counter import FlopCounterMode

    def eager(ctx, opened=stage.open_session):
        session = opened(ctx)
        session.model.config._attn_implementation = "eager"  # torch counts no fused attention on a CPU
        return session

    monkeypatch.setattr(stage, "open_session", eager)
    suite = {name: SUITE[name] for name in names}
    with FlopCounterMode(display=False) as counter:
        results = stage.main(context(tmp_path, suite))
    assert results["flops"] == pytest.approx(sum(results[f"{name}.flops"] for name in suite))
    assert least < results["flops"] / counter.get_total_flops() < 1.01


def test_operations_of_a_shared_pass_are_booked_once(teacher):
    _, results = teacher
    assert results["same.flops"] == 0 < results["gold.flops"]
    assert results["flops"] > 0


def test_a_random_teacher_is_unusable(teacher):
    """It solves no sum: a ratio to it would be a division by zero."""
    scores = {row["benchmark"]: row for row in rows_of(teacher[0].out / "scores.parquet")}
    assert scores["sums"]["score"] == 0 and scores["sums"]["status"] == "unusable"
    assert "not above chance" in scores["sums"]["reason"]
    assert scores["same"]["score"] == 1.0 and scores["same"]["status"] == "ok"


def test_agreement_with_the_teacher(teacher, student, tmp_path):
    """The student's share of equal predictions; a copy of the teacher agrees everywhere."""
    theirs = {row["item_id"]: row for row in rows_of(teacher[0].out / "predictions.parquet")}
    mine = {row["item_id"]: row for row in rows_of(student[0].out / "predictions.parquet")}
    rows = [row for row in rows_of(student[0].out / "items.parquet") if row["benchmark"] == "same"]
    for row in rows:
        pairs = list(zip(theirs[row["item_id"]]["predicted"], mine[row["item_id"]]["predicted"], strict=True))
        assert row["score"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert {row["status"] for row in rows_of(student[0].out / "scores.parquet")} == {"ok"}
    copy = context(
        tmp_path,
        {"same": SUITE["same"]},
        role="student",
        inputs={"teacher_evaluation": teacher[0].out},
    )
    assert stage.main(copy)["same.score"] == 1.0


def test_gold_and_agreement_share_one_pass(tmp_path):
    alone, both = CountingMeter(), CountingMeter()
    stage.main(context(tmp_path / "a", {"gold": SUITE["gold"]}, meter=alone))
    stage.main(context(tmp_path / "b", {"gold": SUITE["gold"], "same": SUITE["same"]}, meter=both))
    assert alone.tokens == both.tokens and alone.tokens["processed"] > 0


def test_missing_teacher_is_bad_input(tmp_path, teacher):
    names = {"same": SUITE["same"]}
    with pytest.raises(UserError, match="needs the teacher's evaluation"):
        stage.main(context(tmp_path / "a", names, role="student"))
    with pytest.raises(UserError, match="holds no predictions of benchmark 'other'"):
        inputs = {"teacher_evaluation": teacher[0].out}
        stage.main(context(tmp_path / "b", {"other": SUITE["same"]}, role="student", inputs=inputs))


def test_a_benchmark_that_fails_leaves_the_others(tmp_path, monkeypatch):
    def broken(session, name, params):
        raise RuntimeError("out of\npaper")

    real = stage.runner
    monkeypatch.setattr(stage, "runner", lambda kind: broken if kind == "choice" else real(kind))
    ctx = context(tmp_path, {"choice": SUITE["choice"], "gold": SUITE["gold"]})
    results = stage.main(ctx)
    scores = {row["benchmark"]: row for row in rows_of(ctx.out / "scores.parquet")}
    assert scores["choice"]["status"] == "failed" and scores["choice"]["score"] is None
    assert scores["choice"]["reason"] == "RuntimeError: out of paper"
    assert scores["gold"]["status"] in ("ok", "unusable") and scores["gold"]["score"] is not None
    assert results["choice.status"].startswith("failed")


def test_inference_cost(teacher):
    rows = {(row["batch_size"], row["phase"]): row for row in rows_of(teacher[0].out / "inference.parquet")}
    assert set(rows) == {(1, "prefill"), (1, "decode"), (3, "prefill"), (3, "decode")}
    for (batch, phase), row in rows.items():
        assert row["tokens"] == batch * row["repeats"] * (8 if phase == "prefill" else 3)
        assert row["j_per_token"] == pytest.approx(row["joules"] / row["tokens"])
        assert row["tok_s"] == pytest.approx(row["tokens"] / row["seconds"])
    assert read_inference(teacher[0].out)[("decode", 3)] == rows[(3, "decode")]["j_per_token"]


def test_unknown_joules_are_null(tmp_path):
    ctx = context(tmp_path, {"cost": SUITE["cost"]}, meter=CountingMeter(known=False))
    stage.main(ctx)
    for row in rows_of(ctx.out / "inference.parquet"):
        assert row["joules"] is None and row["j_per_token"] is None and row["reason"]
        assert row["source"] == "unavailable" and row["tok_s"] > 0
    assert rows_of(ctx.out / "scores.parquet")[0]["joules"] is None


def test_contamination_is_counted(tmp_path, teacher):
    import pyarrow as pa

    from distill_energy.data.generated import evaluation_items

    prompts = [item["prompt"] for item in evaluation_items("gold", 6, 0)]
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(
        pa.table({"prompt": [prompts[1], "unrelated words"], "response": ["x", "y"]}), data / "train.parquet"
    )
    ctx = context(tmp_path, {"gold": SUITE["gold"]}, inputs={"data": data})
    results = stage.main(ctx)
    (row,) = rows_of(ctx.out / "scores.parquet")
    assert row["contaminated"] == 1 == results["gold.contaminated"]


def test_unknown_kind_is_refused_before_anything_runs(tmp_path):
    ctx = context(tmp_path, {})
    ctx.spec.params["benchmarks"] = {"p": {"kind": "poetry", "in_quality": True}}
    with pytest.raises(UserError, match=r"benchmarks\.p: .*'poetry' found using 'kind' does not match"):
        stage.main(ctx)
