"""The stage from its parameters to its artifact, on a tiny model."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill_energy.errors import UserError
from distill_energy.train import loop
from distill_energy.train.batching import Sampler
from distill_energy.train.trajectory import COLUMNS

from .tiny import CountingMeter, params, run


def test_trains_and_writes_the_artifact(tmp_path, data):
    meter = CountingMeter()
    results, rows, ctx = run(tmp_path, params(max_steps=40, eval_every=10), data, meter)
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert set(rows[0]) == set(COLUMNS)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] - 0.5
    evaluated = [row for row in rows if row["eval_loss"] is not None]
    assert [row["step"] for row in evaluated] == [10, 20, 30, 40]
    assert all(row["joules"] is not None and row["gold_eval_loss"] == row["eval_loss"] for row in evaluated)
    assert meter.tokens["processed"] == rows[-1]["tokens"]
    assert meter.tokens["loss"] == rows[-1]["loss_tokens"]
    assert results["steps"] == 40 and results["stop_reason"] == "max_steps"
    json.dumps(results, allow_nan=False)
    model = AutoModelForCausalLM.from_pretrained(ctx.out / "model", dtype=torch.float32)
    AutoTokenizer.from_pretrained(ctx.out / "model")
    assert model.dtype == torch.float32 and results["saved_dtype"] == "bfloat16"
    # The saved weights give the best evaluation loss on the same rows, up to bfloat16.
    assert loss_of(model, data["data"] / "validation.parquet") == pytest.approx(results["eval_loss"], rel=0.02)


def loss_of(model, path) -> float:
    import pyarrow.parquet as pq

    total = count = 0
    for row in pq.read_table(path).to_pylist():
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            logp = model(ids).logits[0].log_softmax(-1)
        for t, mask in enumerate(row["loss_mask"]):
            if mask:
                total -= float(logp[t - 1, row["input_ids"][t]])
                count += 1
    return total / count


def test_unknown_joules_are_null(tmp_path, data):
    _, rows, _ = run(tmp_path, params(max_steps=4), data, CountingMeter(known=False))
    assert all(row["joules"] is None and row["joules_eval"] is None for row in rows)


def test_same_seed_same_losses_other_seed_others(tmp_path, data):
    _, first, _ = run(tmp_path / "a", params(), data)
    _, second, _ = run(tmp_path / "b", params(), data)
    _, other, _ = run(tmp_path / "c", params(seed=1), data)
    assert [r["train_loss"] for r in first] == [r["train_loss"] for r in second]
    assert [r["train_loss"] for r in first] != [r["train_loss"] for r in other]


@pytest.mark.parametrize("changes", [{"micro_batch_size": 1}, {"micro_batch_size": 2}, {"packing": True}])
def test_micro_batches_and_packing_change_nothing(tmp_path, data, changes, monkeypatch):
    """Unequal label counts: the loss is the mean over the effective batch's labels however it is cut."""
    # Packed batches are not sorted by length; here they are, so that both runs see the same batches.
    monkeypatch.setattr(loop, "Sampler", lambda lengths, size, seed, bucketed: Sampler(lengths, size, seed))
    _, whole, _ = run(tmp_path / "a", params(), data)
    meter = CountingMeter()
    results, cut, _ = run(tmp_path / "b", params(**changes), data, meter)
    for key in ("train_loss", "grad_norm", "eval_loss"):
        a = [r[key] for r in whole if r[key] is not None]
        b = [r[key] for r in cut if r[key] is not None]
        assert a == pytest.approx(b, rel=2e-3)
    if changes.get("packing") or changes.get("micro_batch_size") == 1:
        assert results["padding_share"] == 0 and meter.tokens["padding"] == 0


def test_packed_batches_are_not_sorted_by_length(tmp_path, data):
    _, padded, _ = run(tmp_path / "a", params(), data)
    _, packed, _ = run(tmp_path / "b", params(packing=True), data)
    assert [r["tokens"] for r in packed] != [r["tokens"] for r in padded]


def test_synthetic_stops_on_its_own_rows_and_reports_gold(tmp_path, data):
    results, rows, _ = run(tmp_path, params("synthetic"), data)
    evaluated = [row for row in rows if row["eval_loss"] is not None]
    assert all(not math.isclose(row["eval_loss"], row["gold_eval_loss"]) for row in evaluated)
    assert results["eval_loss"] == min(row["eval_loss"] for row in evaluated)


def test_early_stopping_and_best_weights(tmp_path, data):
    """A rate that destroys the student: it stops after ``patience`` evaluations and keeps the first one's weights."""
    results, rows, _ = run(
        tmp_path, params(learning_rate=0.5, max_steps=40, eval_every=2, patience=3, warmup_steps=0), data
    )
    losses = [row["eval_loss"] for row in rows if row["eval_loss"] is not None]
    best = int(np.argmin(losses))
    assert results["stop_reason"] == "early_stopping" and results["steps"] < 40
    assert results["best_step"] == 2 * (best + 1) < results["steps"]


def test_lora_is_merged(tmp_path, data):
    results, rows, ctx = run(
        tmp_path, params("lora", pipeline={"options": {"rank": 4}}, learning_rate=2e-2, max_steps=20), data
    )
    assert results["parameters_trained"] < results["parameters"] / 2
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    names = AutoModelForCausalLM.from_pretrained(ctx.out / "model").state_dict()
    assert not any("lora" in name for name in names)


@pytest.mark.parametrize("precision", ["bf16_autocast", "bf16_stochastic", "bf16", "fp32"])
@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_every_precision_learns(tmp_path, data, precision, optimizer):
    rate = 3e-2 if optimizer == "adafactor" else 3e-3
    results, rows, _ = run(
        tmp_path, params(precision=precision, optimizer=optimizer, learning_rate=rate, max_steps=24), data
    )
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] - 0.2
    assert 0 < results["share_changed"] <= 1


def test_gradient_checkpointing_changes_nothing(tmp_path, data):
    _, plain, _ = run(tmp_path / "a", params(max_steps=4), data)
    _, saved, _ = run(tmp_path / "b", params(max_steps=4, gradient_checkpointing=True), data)
    assert [r["train_loss"] for r in plain] == pytest.approx([r["train_loss"] for r in saved], rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_is_not_finite_names_the_step(tmp_path, data):
    with pytest.raises(UserError, match=r"(loss|norm) is (nan|inf) at step \d+"):
        run(tmp_path, params(learning_rate=1e30, warmup_steps=0), data)


def test_empty_data(tmp_path, data):
    from .tiny import write_rows

    write_rows(tmp_path / "empty" / "train.parquet", 0, seed=0)
    with pytest.raises(UserError, match="holds no examples"):
        run(tmp_path, params(), {**data, "data": tmp_path / "empty"})


def test_token_outside_the_vocabulary(tmp_path, data):
    from distill_energy.train.examples import read_examples

    with pytest.raises(UserError, match="outside the student's vocabulary of 30"):
        read_examples(data["data"] / "train.parquet", 30)


def test_operations_are_those_of_the_tokens_whatever_the_layout(tmp_path, data):
    """Packed or padded, a step's examples take the same; twice the steps, twice as many."""
    counts = {}
    for name, changes in {"padded": {}, "packed": {"packing": True}, "twice": {"max_steps": 24}}.items():
        results, _, _ = run(tmp_path / name, params(eval_every=1000, **changes), data)
        counts[name] = results["flops_forward"]
        assert results["flops_backward"] == 2 * results["flops_forward"] > 0 == results["flops_recompute"]
        assert results["flops"] == sum(v for k, v in results.items() if k.startswith("flops_"))
    assert counts["twice"] == pytest.approx(2 * counts["padded"], rel=0.1)
    assert counts["packed"] == pytest.approx(counts["padded"], rel=0.1)  # batches of other lengths
