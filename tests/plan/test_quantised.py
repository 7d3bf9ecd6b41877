"""What a quantised model plans: a run of its own, no teacher job, and nothing that fits nothing."""

import copy

import pytest
import yaml

from distill_energy.config import parse_config
from distill_energy.errors import UserError
from distill_energy.ledger.graph import Provenance
from distill_energy.plan import build_plan


@pytest.fixture
def data(repo):
    return yaml.safe_load((repo / "configs" / "smoke.yaml").read_text(encoding="utf-8"))


def plan_of(data, **pipelines):
    data = copy.deepcopy(data)
    data["pipelines"] |= pipelines
    return build_plan(parse_config(data))


def new(data, **pipelines):
    before = set(plan_of(data).nodes)
    after = plan_of(data, **pipelines)
    assert before <= set(after.nodes)  # nothing that was there is made again
    return after, sorted((stage, name) for stage, name, _ in set(after.nodes) - before)


def test_the_teacher_is_quantised_once_whatever_the_seeds(data):
    data["seeds"] = [0, 1]
    plan, added = new(data, int8={"kind": "quantised"}, int4={"kind": "quantised", "options": {"bits": 4}})
    assert added == [
        ("evaluation", "demo-demo-int4-big-s0"),
        ("evaluation", "demo-demo-int8-big-s0"),
        ("student_training", "demo-int4-big-s0"),
        ("student_training", "demo-int8-big-s0"),
    ]
    (node,) = [n for n in plan.of("student_training") if n.labels["pipeline"] == "int8"]
    assert {item.stage for item in node.consumes} == {"prerun"} and "training" not in node.params


def test_a_student_is_quantised_for_each_seed_and_carries_its_training(data):
    data["seeds"] = [0, 1]
    plan, added = new(data, kd8={"kind": "quantised", "options": {"of": "kd"}})
    assert [name for stage, name in added if stage == "student_training"] == ["demo-kd8-small-s0", "demo-kd8-small-s1"]
    nodes = [n for n in plan.of("student_training") if n.labels["pipeline"] == "kd8"]
    assert len({n.labels["group"] for n in nodes}) == 1  # one row over both seeds
    for node in nodes:
        (trained,) = [i for i in node.consumes if i.role == "model"]
        assert trained.name == f"demo-kd-small-s{node.seed}"
    assert not any(stage.startswith("teacher_") for stage, _ in added)


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        ({"options": {"of": "nobody"}}, r"pipelines\.q\.options\.of: 'nobody' is not one of teacher, sft, kd"),
        ({"options": {"of": "q"}}, "'q' quantises itself"),
        ({"options": {"bits": 5}}, r"options\.bits"),
        ({"options": {"method": "gptq"}}, "'gptq' is not made here"),
        ({"options": {"method": "awq"}}, "'awq' is not made here"),
        ({"alpha": 0.5}, "alpha: nothing is trained"),
        ({"training": {"max_steps": 3}}, r"pipelines\.q\.training: quantised trains nothing"),
        ({"sweep": {"max_steps": [1, 2]}}, r"pipelines\.q\.sweep: quantised trains nothing"),
        ({"students": ["small"]}, r"pipelines\.q\.students: options\.of is the teacher"),
    ],
)
def test_what_fits_nothing_is_refused_by_name(data, pipeline, words):
    with pytest.raises(UserError, match=words):
        plan_of(data, q={"kind": "quantised", **pipeline})


def test_it_is_no_baseline_and_samples_nothing(data):
    with pytest.raises(UserError, match=r"pipelines\.o\.options\.sampler: 'q' trains no student"):
        plan_of(
            data,
            q={"kind": "quantised"},
            o={"kind": "offline_policy", "alpha": 0.3, "temperature": 1.0, "options": {"sampler": "q"}},
        )
    data["accounting"]["baseline"] = "q"
    with pytest.raises(UserError, match=r"accounting\.baseline: 'q' trains nothing"):
        build_plan(parse_config({**data, "pipelines": {**data["pipelines"], "q": {"kind": "quantised"}}}))


def test_a_quantised_student_is_no_further_reuse_of_the_artifact_that_its_training_consumed():
    logits, kd, q = (("teacher_logits", "t", "v"), ("student_training", "kd", "v"), ("student_training", "q", "v"))
    found = Provenance({logits: [], kd: [logits], q: [kd]}, {kd: "kd", q: "q"})
    assert found.reuse(logits) == 1 and found.closure(q) == {kd, logits}
    assert found.continued(q) == {kd} and found.needs(q) == frozenset() and found.needs(kd) == {logits}
