"""Several teachers, and students that answer before a teacher scores: what is planned, and what is not again."""

import copy

import pytest
import yaml

from distill_energy.config import parse_config
from distill_energy.errors import UserError
from distill_energy.plan import build_plan


@pytest.fixture
def data(repo):
    return yaml.safe_load((repo / "configs" / "smoke.yaml").read_text(encoding="utf-8"))


def plan_of(data):
    return build_plan(parse_config(copy.deepcopy(data)))


@pytest.fixture
def two(data):
    data["models"]["middle"] = {"source": "pruned", "of": "big", "layers": 3}
    data["teachers"] = ["big", "middle"]
    return data


def test_a_second_teacher_plans_its_own_work_alone(data, two):
    del data["teachers"]
    before = set(plan_of(data).nodes)
    two["teachers"] = ["big", "middle"]
    after = set(plan_of(two).nodes)
    assert before <= after  # nothing of the first teacher is made again
    new = [(stage, name) for stage, name, _ in after - before]
    assert sorted(new) == [
        ("evaluation", "demo-demo-kd-from-middle-small-s0"),
        ("evaluation", "demo-demo-synthetic-from-middle-small-s0"),
        ("student_training", "demo-kd-from-middle-small-s0"),
        ("student_training", "demo-synthetic-from-middle-small-s0"),
        ("teacher_generation", "middle-demo"),
        ("teacher_logits", "middle-demo"),
    ]  # the baseline learns from no teacher: it is trained once, and only Q's reference is evaluated


def test_a_student_more_plans_no_teacher_job(two):
    teachers = {key for key in plan_of(two).nodes if key[0].startswith("teacher_")}
    two["models"]["new"] = {"source": "pruned", "of": "big", "layers": 1}
    two["students"].append("new")
    assert {key for key in plan_of(two).nodes if key[0].startswith("teacher_")} == teachers


def test_a_pipeline_may_name_its_teachers(two):
    two["pipelines"]["kd"]["teachers"] = ["middle"]
    plan = plan_of(two)
    assert {n.labels["teacher"] for n in plan.of("student_training") if n.labels["pipeline"] == "kd"} == {"middle"}
    assert {n.labels["teacher"] for n in plan.of("teacher_logits")} == {"middle"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teachers": ["middle"]}, "'big', Q's reference"),
        ({"teachers": ["big", "nobody"]}, "'nobody' is not one of"),
        ({"teachers": ["big", "big"]}, "listed twice"),
        ({"teachers": []}, "teachers"),
    ],
)
def test_wrong_teachers_are_named(two, change, words):
    with pytest.raises(UserError, match=words):
        plan_of(two | change)


@pytest.fixture
def sampled(data):
    data["pipelines"]["offline"] = {"kind": "offline_policy", "alpha": 0.3, "temperature": 1.0}
    return data


def test_offline_policy_reuses_the_samplers_training_and_shares_its_artifacts(data, sampled):
    plan = plan_of(sampled)
    runs = [n for n in plan.of("student_training") if n.labels["pipeline"] == "offline"]
    (run,) = runs
    by_role = {item.role: item for item in run.consumes}
    answers = plan.spec("teacher_generation", by_role["teacher_generation"].name, by_role["teacher_generation"].version)
    scored = plan.spec("teacher_logits", by_role["teacher_logits"].name, by_role["teacher_logits"].version)
    assert answers.key in {(i.stage, i.name, i.version) for i in scored.consumes}
    (sampler,) = [i for i in answers.consumes if i.stage == "student_training"]
    assert sampler.name == "demo-sft-small-s0"  # the very training of the baseline
    sampled["seeds"] = [0, 1, 2]
    more = plan_of(sampled)
    assert len([n for n in more.of("student_training") if n.labels["pipeline"] == "offline"]) == 3
    assert {n.key for n in more.of("teacher_logits")} == {n.key for n in plan.of("teacher_logits")}


def test_one_sampler_serves_every_student(sampled):
    sampled["models"]["new"] = {"source": "pruned", "of": "big", "layers": 1}
    sampled["students"].append("new")
    each = len(plan_of(sampled).of("teacher_generation"))
    sampled["pipelines"]["offline"]["options"] = {"student": "small"}
    assert len(plan_of(sampled).of("teacher_generation")) == each - 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "nobody"}, "options.sampler: 'nobody' is not one of"),
        ({"sampler": "offline"}, "'offline' samples itself"),
        ({"student": "nobody"}, "options.student: 'nobody' is not one of"),
        ({"samplr": "sft"}, "options.samplr"),
    ],
)
def test_wrong_samplers_are_named(sampled, options, words):
    sampled["pipelines"]["offline"]["options"] = options
    with pytest.raises(UserError, match=words):
        plan_of(sampled)
