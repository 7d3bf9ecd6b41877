"""Preference optimisation: what is planned, what is not again, and what is refused."""

import copy

import pytest
import yaml

from distill_energy.config import parse_config
from distill_energy.errors import UserError
from distill_energy.forecast.workload import Sizes, workload
from distill_energy.plan import build_plan
from distill_energy.stage import gpus_of


@pytest.fixture
def data(repo):
    data = yaml.safe_load((repo / "configs" / "smoke.yaml").read_text(encoding="utf-8"))
    data["pipelines"]["dpo"] = {"kind": "preference", "options": {"beta": 0.1}}
    data["pipelines"]["offline"] = {"kind": "offline_policy", "alpha": 0.3, "temperature": 1.0}
    return data


def plan_of(data):
    return build_plan(parse_config(copy.deepcopy(data)))


def teacher_jobs(plan):
    """Of the teacher itself, not of a student that answers."""
    return {n.key for n in plan.nodes.values() if n.stage.startswith("teacher_") and n.labels.get("role") != "sampler"}


def test_it_starts_from_the_baseline_and_reuses_what_others_have(data):
    plan = plan_of(data)
    (run,) = [n for n in plan.of("student_training") if n.labels["pipeline"] == "dpo"]
    by_role = {item.role: item for item in run.consumes}
    assert set(by_role) == {"model", "data", "chosen", "rejected", "reference", "prerun"}
    assert (by_role["model"].stage, by_role["model"].name) == ("student_training", "demo-sft-small-s0")
    (synthetic,) = [n for n in plan.of("student_training") if n.labels["pipeline"] == "synthetic"]
    (offline,) = [n for n in plan.of("student_training") if n.labels["pipeline"] == "offline"]
    shared = {(i.stage, i.name, i.version) for n in (synthetic, offline) for i in n.consumes}
    for role in ("chosen", "rejected"):  # the very answers that the other two train on
        assert (by_role[role].stage, by_role[role].name, by_role[role].version) in shared
    scored = plan.spec("reference_logprobs", by_role["reference"].name, by_role["reference"].version)
    assert {i.role for i in scored.consumes if i.hashed} == {"model", "chosen", "rejected"}
    assert gpus_of(scored) == 1
    assert run.params["model"] == {"source": "trained"} and run.params["teacher"]["source"] == "random"


@pytest.mark.parametrize("more", ["student", "beta", "seed"])
def test_one_more_plans_no_teacher_job(data, more):
    if more == "student":
        del data["pipelines"]["offline"]  # there the teacher scores each student's answers
    before = plan_of(data)
    if more == "student":
        data["models"]["new"] = {"source": "pruned", "of": "big", "layers": 1}
        data["students"].append("new")
    elif more == "beta":
        data["pipelines"]["dpo"]["sweep"] = {"options.beta": [0.1, 0.5]}
    else:
        data["seeds"] = [0, 1]
    after = plan_of(data)
    assert set(before.nodes) <= set(after.nodes)
    assert teacher_jobs(after) == teacher_jobs(before)
    new = {(stage, name) for stage, name, _ in set(after.nodes) - set(before.nodes)}
    if more == "beta":  # neither of the student that answers, nor of the reference
        assert new == {
            ("student_training", "demo-dpo-beta0.5-small-s0"),
            ("evaluation", "demo-demo-dpo-beta0.5-small-s0"),
        }
    if more == "seed":
        assert {stage for stage, _ in new} == {"student_training", "evaluation"}
    if more == "student":
        assert ("reference_logprobs", "big-demo-new-sft-pairs") in new


def test_what_the_reference_is_decides_its_log_probabilities(data):
    before = plan_of(data).of("reference_logprobs")
    data["pipelines"]["dpo"]["options"]["sampler"] = "kd"
    (after,) = plan_of(data).of("reference_logprobs")
    assert after.key != before[0].key and after.name == "big-demo-small-kd-pairs"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"options": {"beta": 0}}, "pipelines.dpo: pipeline preference: options.beta"),
        ({"options": {"student": "small"}}, "options.student"),
        ({"options": {"sampler": "nobody"}}, "options.sampler: 'nobody' is not one of"),
        ({"options": {"sampler": "offline"}}, "'offline' samples itself"),
        ({"options": {"sampler": "elsewhere"}}, "'elsewhere' trains on data set other, not on demo"),
        ({"options": {"sampler": "few"}}, "'few' trains no student small"),
        ({"sweep": {"options.gamma": [1]}}, "options.gamma"),
        ({"training": {"reference_faithful": True}}, "reproduces sft, kd and synthetic, not preference"),
    ],
)
def test_what_does_not_fit_is_named(data, change, words):
    data["models"]["new"] = {"source": "pruned", "of": "big", "layers": 1}
    data["students"].append("new")
    data["datasets"]["other"] = {**data["datasets"]["demo"], "seed": 9}
    data["pipelines"]["elsewhere"] = {"kind": "sft", "dataset": "other"}
    data["pipelines"]["few"] = {"kind": "sft", "students": ["new"]}
    data["pipelines"]["dpo"] = {"kind": "preference", "dataset": "demo", **change}
    data["pipelines"]["offline"]["dataset"] = "demo"
    with pytest.raises(UserError, match=words):
        plan_of(data)


def test_its_work_is_that_of_two_answers(data):
    config = parse_config(copy.deepcopy(data))
    sizes = Sizes(config.model_dump(mode="json"))
    works = {n.name: workload(n.to_json(), sizes) for n in build_plan(config).nodes.values()}
    dpo, synthetic = works["demo-dpo-small-s0"], works["demo-synthetic-small-s0"]
    assert dpo.terms[0].tokens == pytest.approx([2 * n for n in synthetic.terms[0].tokens])
    scored = works["big-demo-small-sft-pairs"]
    assert scored.unknown is None and scored.terms[0].parameters == dpo.terms[0].parameters
