"""Preference optimisation: the loss against float64 and trl's, and its two stages on tiny pairs."""

import json
import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from distill_energy.errors import UserError
from distill_energy.kd.losses.dpo import ReferenceRows, dpo_loss
from distill_energy.plan.spec import make_spec
from distill_energy.stage import StageContext
from distill_energy.train import logprobs
from distill_energy.train.loop import Loop
from distill_energy.train.pairs import read_pairs, scored_pairs
from distill_energy.train.processes import available

from .tiny import ENERGY, VOCABULARY, CountingMeter, params, run, write_rows

COUNTS = [3, 1, 2, 4]


@pytest.fixture
def rows():
    """States, output layer, bias, labels and the reference of two pairs, in float64."""
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*size, dtype=torch.float64) for size in ((10, 5), (11, 5), (11,)))
    reference = ReferenceRows(-torch.rand(2, 2, dtype=torch.float64) * 9, COUNTS)
    return [x.requires_grad_() for x in (hidden, weight, bias)], torch.arange(10), reference


def logprobs_of(leaves, labels, softcap=None):
    hidden, weight, bias = leaves
    logits = hidden @ weight.T + bias
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    each = torch.log_softmax(logits, 1).gather(1, labels[:, None])[:, 0]
    return each, torch.stack([part.sum() for part in each.split(COUNTS)]).view(-1, 2)


@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_loss_and_gradients_are_those_of_the_definition(rows, beta, softcap):
    """Rafailov et al. 2023, eq. 7."""
    leaves, labels, reference = rows
    each, policy = logprobs_of(leaves, labels, softcap)
    gain = policy - reference.logprobs
    expected = -torch.log(torch.sigmoid(beta * (gain[:, 0] - gain[:, 1]))).sum()
    found = dpo_loss(leaves[0], leaves[1], labels, reference, beta, leaves[2], softcap)
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert found.ce.item() == pytest.approx(-each.sum().item(), rel=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(found.total, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def test_loss_and_gradients_are_those_of_trl(rows):
    """Its trainer's own computation of the loss, with a stand-in for the trainer around it."""
    trl = pytest.importorskip("trl.trainer.dpo_trainer")
    leaves, labels, reference = rows
    each, _ = logprobs_of(leaves, labels)
    most = max(COUNTS)
    # Its batch is all chosen answers, then all rejected ones, padded.
    order = [0, 2, 1, 3]
    padded = torch.stack([torch.nn.functional.pad(each.split(COUNTS)[i], (0, most - COUNTS[i])) for i in order])
    mask = torch.tensor([[0] + [1] * COUNTS[i] + [0] * (most - COUNTS[i]) for i in order])
    model = SimpleNamespace(training=True)
    trainer = SimpleNamespace(
        model=model, accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x),
        aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl",
        loss_types=["sigmoid"], loss_weights=[1.0], beta=0.3, label_smoothing=0.0, use_weighting=False,
        args=SimpleNamespace(), _metrics={"train": defaultdict(list)},
        _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    figures = dict.fromkeys(("entropy", "mean_logits"), padded.detach())  # what it logs beside the loss
    answer = SimpleNamespace(log_probs=padded, is_top1=torch.zeros(4, most, dtype=torch.bool), **figures)
    inputs = {
        "input_ids": mask, "attention_mask": mask, "completion_mask": mask,
        "ref_chosen_logps": reference.logprobs[:, 0], "ref_rejected_logps": reference.logprobs[:, 1],
    }  # fmt: skip
    theirs = trl.DPOTrainer._compute_loss(trainer, lambda **k: answer, inputs, False)
    ours = dpo_loss(leaves[0], leaves[1], labels, reference, 0.3, leaves[2]).total / 2
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)
    for a, b in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


def test_labels_that_are_not_the_references_are_refused(rows):
    leaves, labels, reference = rows
    with pytest.raises(ValueError, match="9 labels, 4 sequences of 10"):
        dpo_loss(leaves[0][:9], leaves[1], labels[:9], reference, 0.1)


# --- the two stages --------------------------------------------------------------------------------------------------


def reversed_answers(source, target):
    """The same prompts with their answers backwards: what a worse student says."""
    table = pq.read_table(source)
    rows = table.to_pylist()
    for row in rows:
        n = len(row["prompt_ids"])
        row["input_ids"] = [*row["input_ids"][:n], *row["input_ids"][n:-1][::-1][:-1], 2]
        row["loss_mask"] = row["loss_mask"][: len(row["input_ids"])]
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), target)


def score(folder, inputs, precision="fp32"):
    spec = make_spec(
        "reference_logprobs", "pairs", 1, {"model": {"source": "trained"}, "precision": precision},
        root=str(folder), energy=ENERGY,
    )  # fmt: skip
    out = folder / "reference"
    out.mkdir(parents=True)
    meter = CountingMeter()
    found = logprobs.main(StageContext(spec, inputs, out, folder / "work", meter, print))
    return found, {**inputs, "reference": out}, meter


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, data):
    """Inputs of a preference training after the stage of its log-probabilities, with that stage's results."""
    folder = tmp_path_factory.mktemp("pairs")
    _, _, ctx = run(folder / "sft", params("sft", max_steps=30, eval_every=30), data)
    for split in ("train", "validation"):
        reversed_answers(data["teacher_generation"] / f"{split}.parquet", folder / "own" / f"{split}.parquet")
    inputs = {"model": ctx.out, "data": data["data"], "chosen": data["teacher_generation"], "rejected": folder / "own"}
    found, inputs, meter = score(folder, inputs)
    return SimpleNamespace(found=found, inputs=inputs, meter=meter)


def preference(beta=0.5, **changes):
    asked = params("preference", pipeline={"options": {"beta": beta}}, model={"source": "trained"}, **changes)
    return {**asked, "teacher": {"source": "random"}}


def test_reference_log_probabilities_are_the_saved_students(pairs):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(pairs.inputs["model"] / "model", dtype=torch.float32)
    read = scored_pairs(*(pairs.inputs[k] for k in ("chosen", "rejected", "reference")), "train", VOCABULARY)
    for i in range(3):
        for side in range(2):
            span = slice(read.offsets[2 * i + side], read.offsets[2 * i + side + 1])
            ids, mask = torch.from_numpy(read.tokens[span]).long(), torch.from_numpy(read.labels[span])
            each = torch.log_softmax(model(ids[None]).logits[0, :-1].double(), 1).gather(1, ids[1:, None])[:, 0]
            assert read.reference[i, side] == pytest.approx(float(each[mask[1:]].sum()), abs=1e-4)
    assert pairs.found["n_train"] == len(read) > 0 and pairs.found["flops"] > 0
    assert pairs.meter.tokens["loss"] == pairs.found["train_labels"] + pairs.found["validation_labels"]


@pytest.mark.parametrize("packing", [False, True])
def test_it_starts_at_ln_2_and_learns_to_prefer(tmp_path, pairs, packing):
    results, rows, _ = run(
        tmp_path, preference(max_steps=24, eval_every=12, warmup_steps=0, packing=packing), pairs.inputs
    )
    assert rows[0]["train_loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert rows[-1]["train_loss"] < 0.5 and rows[-1]["eval_loss"] < math.log(2)
    assert rows[0]["gold_eval_loss"] is None and rows[-1]["gold_eval_loss"] is not None
    assert results["flops"] == pytest.approx(sum(v for k, v in results.items() if k.startswith("flops_")))


def test_it_starts_at_ln_2_in_half_precision_too(tmp_path, pairs):
    """The reference is computed as the training computes; a sum over an answer is the farther off the longer it is."""
    given = {role: pairs.inputs[role] for role in ("model", "data", "chosen", "rejected")}
    _, inputs, _ = score(tmp_path, given, "bf16_autocast")
    _, rows, _ = run(tmp_path / "run", preference(precision="bf16_autocast", max_steps=1, beta=0.1), inputs)
    assert rows[0]["train_loss"] == pytest.approx(math.log(2), abs=5e-3)


def test_operations_are_those_of_both_answers_and_a_second_output_layer(tmp_path, pairs):
    from transformers import AutoModelForCausalLM

    from distill_energy.models.flops import shape_of

    results, rows, _ = run(tmp_path, preference(max_steps=5, batch_size=20), pairs.inputs)
    shape = shape_of(AutoModelForCausalLM.from_pretrained(pairs.inputs["model"] / "model"))
    read = read_pairs(pairs.inputs["chosen"], pairs.inputs["rejected"], "train", VOCABULARY)
    assert len(read) == 20  # so that a step is an epoch
    sizes = np.diff(read.offsets).astype(float)
    labels = float(read.sequence_labels.sum())
    forward = shape.per_token * sizes.sum() + shape.attention * (sizes**2).sum() + shape.output * labels
    assert results["flops_forward"] == pytest.approx(5 * forward)
    assert results["flops_backward"] == pytest.approx(10 * forward)
    assert results["flops_recompute"] == pytest.approx(5 * shape.output * labels)
    assert rows[-1]["tokens"] == 5 * sizes.sum() and rows[-1]["loss_tokens"] == 5 * labels


@pytest.mark.parametrize("micro", [1, 2])
def test_micro_batches_change_nothing(tmp_path, pairs, micro):
    whole = run(tmp_path / "a", preference(max_steps=4), pairs.inputs)[1]
    cut = run(tmp_path / "b", preference(max_steps=4, micro_batch_size=micro), pairs.inputs)[1]
    for a, b in zip(whole, cut, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(available("cpu") < 2, reason="one processor core")
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_train_on_pairs_as_one_does(tmp_path, pairs, sharding):
    changes = {"max_steps": 4, "eval_every": 2, "micro_batch_size": 1}
    one = run(tmp_path / "a", preference(**changes), pairs.inputs)[1]
    two = run(tmp_path / "b", preference(processes=2, sharding=sharding, **changes), pairs.inputs)[1]
    for key in ("train_loss", "ce", "eval_loss", "gold_eval_loss", "loss_tokens"):
        a, b = ([r[key] for r in rows if r[key] is not None] for rows in (one, two))
        assert a == pytest.approx(b, rel=1e-3), key


def test_a_resumed_training_is_one_that_was_not_ended(tmp_path, pairs, monkeypatch):
    asked = preference(max_steps=8, eval_every=4, checkpoint_every=4)
    whole = run(tmp_path / "a", asked, pairs.inputs)[1]
    step = Loop._step

    def ends(self):
        if self.state.step == 6:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Loop, "_step", ends)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", asked, pairs.inputs)
    monkeypatch.setattr(Loop, "_step", step)
    resumed = run(tmp_path / "b", asked, pairs.inputs)[1]
    assert [r["train_loss"] for r in resumed] == [r["train_loss"] for r in whole]
    assert [r["eval_loss"] for r in resumed] == [r["eval_loss"] for r in whole]


def test_adapters_are_trained_on_pairs_too(tmp_path, pairs):
    results, rows, ctx = run(
        tmp_path, preference(max_steps=60, eval_every=60, learning_rate=0.01, lora={"rank": 8}), pairs.inputs
    )
    assert rows[0]["train_loss"] == pytest.approx(math.log(2), abs=1e-3) and rows[-1]["train_loss"] < 0.6
    assert results["parameters_trained"] < results["parameters"]
    assert json.loads((ctx.out / "model" / "config.json").read_text())["model_type"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("other scores", "its log-probabilities are of other pairs"),
        ("same answers", "no answer differs"),
        ("other prompts", "answers another prompt than in"),
    ],
)
def test_data_that_make_no_pairs_are_named(tmp_path, pairs, data, change, words):
    inputs = dict(pairs.inputs)
    if change == "same answers":
        inputs["rejected"] = inputs["chosen"]
    elif change == "other scores":
        for split in ("train", "validation"):
            (tmp_path / "r").mkdir(exist_ok=True)
            table = pq.read_table(inputs["reference"] / f"{split}.parquet")
            pq.write_table(table.slice(1), tmp_path / "r" / f"{split}.parquet")
        inputs["reference"] = tmp_path / "r"
    else:
        for split, seed in (("train", 3), ("validation", 4)):
            write_rows(tmp_path / "o" / f"{split}.parquet", 20, seed=seed, shortest=8, longest=9, copies=False)
        inputs["rejected"] = tmp_path / "o"
    with pytest.raises(UserError, match=words):
        run(tmp_path, preference(), inputs)
