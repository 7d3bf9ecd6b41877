"""Versions change when content does, and only then; teacher artifacts are shared."""

import copy
import random

import pytest
import yaml

from distill_energy.config import parse_config
from distill_energy.errors import UserError
from distill_energy.plan import StageSpec, build_plan, digest


@pytest.fixture
def data(repo):
    return yaml.safe_load((repo / "config.yaml").read_text())


def keys(data, stage=None):
    nodes = build_plan(parse_config(data)).nodes
    return {key for key in nodes if stage is None or key[0] == stage}


def teacher_keys(data):
    return {k for k in keys(data) if k[0].startswith("teacher_")}


def test_default_plan_has_each_stage_once(data):
    plan = build_plan(parse_config(data))
    runs = len(data["students"]) * len(data["seeds"]) * len(data["pipelines"])
    assert len(plan.of("student_training")) == runs
    assert len(plan.of("evaluation")) == runs + 1  # and the teacher
    assert len(plan.of("teacher_logits")) == len(plan.of("teacher_generation")) == 1
    assert len(plan.of("prerun")) == 1


def test_consumed_artifacts_are_in_the_plan(data):
    plan = build_plan(parse_config(data))
    for spec in plan.nodes.values():
        for item in spec.consumes:
            assert (item.stage, item.name, item.version) in plan.nodes


def test_only_distilling_pipelines_consume_the_teacher(data):
    plan = build_plan(parse_config(data))
    for spec in plan.of("student_training"):
        teachers = [i.stage for i in spec.consumes if i.stage.startswith("teacher_")]
        expected = {"sft": [], "kd": ["teacher_logits"], "synthetic": ["teacher_generation"]}
        assert teachers == expected[spec.labels["pipeline"]]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: (d["models"].update({"new": {"source": "pruned", "of": "smollm2-135m", "layers": 9}}),
                   d["students"].append("new")),
        lambda d: d["seeds"].append(7),
        lambda d: d["pipelines"]["kd"].update(sweep={"alpha": [0.3, 0.5, 0.8], "temperature": [1, 2, 4]}),
        lambda d: d["training"].update(max_steps=41),
        lambda d: d["energy"].update(interval_s=0.25),
        lambda d: d["prerun"].update(idle_seconds=11),
        lambda d: d["accounting"].update(confidence=0.9),
        lambda d: d["evaluation"]["benchmarks"]["choice"].update(items=20),
    ],
    ids=["student", "seed", "sweep", "training", "interval", "prerun", "accounting", "evaluation"],
)  # fmt: skip
def test_what_the_teacher_does_not_depend_on_leaves_its_artifacts(data, change):
    before = teacher_keys(data)
    assert len(before) == 2
    change(data)
    assert teacher_keys(data) == before


def test_a_teacher_parameter_changes_exactly_its_dependents(data):
    before, head = build_plan(parse_config(data)), parse_config(data).teacher.logits.head
    changed = copy.deepcopy(data)
    changed["teacher"]["logits"]["head"] = head + 1
    after = build_plan(parse_config(changed))
    gone = {key for key in before.nodes if key not in after.nodes}
    kd = {s.version for s in before.of("student_training") if s.labels["pipeline"] == "kd"}
    assert {key[0] for key in gone} == {"teacher_logits", "student_training", "evaluation"}
    assert {key[2] for key in gone if key[0] == "student_training"} == kd
    assert len([key for key in gone if key[0] == "evaluation"]) == len(kd)
    changed["teacher"]["logits"]["head"] = head
    assert set(build_plan(parse_config(changed)).nodes) == set(before.nodes)


def test_one_generation_for_each_max_new_tokens(data):
    data["pipelines"]["synthetic"]["sweep"] = {"max_new_tokens": [16, 32, 64]}
    assert len(keys(data, "teacher_generation")) == 3
    assert len(keys(data, "teacher_logits")) == 1


def test_a_sweep_keeps_the_runs_that_repeat_the_pipelines_own_settings(data):
    before = keys(data, "student_training")
    data["pipelines"]["kd"]["sweep"] = {"alpha": [0.3, 0.8], "learning_rate": [1e-3, 2e-3]}
    after = keys(data, "student_training")
    assert before < after
    assert len(after) == len(before) + 3 * len(data["students"]) * len(data["seeds"])


def test_every_data_set_gets_every_pipeline(data):
    data["datasets"]["other"] = {**data["datasets"]["demo"], "seed": 9}
    plan = build_plan(parse_config(data))
    assert len(plan.of("teacher_logits")) == 2
    assert {s.labels["dataset"] for s in plan.of("student_training")} == {"demo", "other"}


def shuffled(value, rng):
    if isinstance(value, dict):
        items = list(value.items())
        rng.shuffle(items)
        return {key: shuffled(item, rng) for key, item in items}
    return value


def test_order_of_keys_does_not_matter(data):
    before = keys(data)
    for seed in range(5):
        assert keys(shuffled(data, random.Random(seed))) == before


def test_swapped_values_do_matter(data):
    before = keys(data, "teacher_logits")
    data["teacher"]["logits"] = {**data["teacher"]["logits"], "head": 40, "tail": 56}
    middle = keys(data, "teacher_logits")
    data["teacher"]["logits"] = {**data["teacher"]["logits"], "head": 56, "tail": 40}
    assert len({*before, *middle, *keys(data, "teacher_logits")}) == 3


def test_digest_ignores_nulls_and_integral_floats():
    assert digest({"a": 1, "new": None}) == digest({"a": 1.0})
    assert digest({"a": 1}) != digest({"a": "1"})
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})


def test_groups_are_runs_without_their_seed(data):
    plan = build_plan(parse_config(data))
    groups = {}
    for spec in plan.of("student_training"):
        groups.setdefault(spec.labels["group"], set()).add(spec.seed)
    assert len(groups) == 9
    assert all(seeds == {0, 1} for seeds in groups.values())


def test_spec_survives_json(data):
    import json

    for spec in build_plan(parse_config(data)).nodes.values():
        assert StageSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_teacher_store_moves_teacher_artifacts_without_changing_versions(data):
    before = {key[2] for key in teacher_keys(data)}
    data["teacher_store"] = "/shared/teachers"
    plan = build_plan(parse_config(data))
    stored = [s for s in plan.nodes.values() if s.stage.startswith("teacher_")]
    assert {s.version for s in stored} == before
    assert all(s.folder.startswith("/shared/teachers/") for s in stored)
    assert all(s.folder.startswith("results/") for s in plan.of("student_training"))


def test_unknown_things_are_named(data):
    plan = build_plan(parse_config(data))
    with pytest.raises(UserError, match="the configuration does not imply it"):
        plan.spec("teacher_logits", "smollm2-135m-demo", "0" * 12)
    data["pipelines"]["sft"]["kind"] = "nope"
    with pytest.raises(UserError, match=r"pipelines\.sft\.kind: .*nope"):
        build_plan(parse_config(data))
    data["pipelines"]["sft"] = {"kind": "kd", "alpha": 0.5}
    with pytest.raises(UserError, match=r"pipelines\.sft: .*temperature is missing"):
        build_plan(parse_config(data))
    data["pipelines"]["sft"] = {"kind": "sft", "sweep": {"learning_rate": [-1]}}
    with pytest.raises(UserError, match=r"pipelines\.sft: learning_rate"):
        build_plan(parse_config(data))


def test_a_mistyped_kind_is_named_as_the_kind_and_the_right_one_suggested(repo):
    from distill_energy.config.load import read_yaml

    data = read_yaml(repo / "configs" / "smoke.yaml")
    data["pipelines"]["mine"] = {"kind": "dk"}
    with pytest.raises(UserError, match=r"pipelines\.mine\.kind: 'dk' is not one of .*\(did you mean kd\?\)"):
        build_plan(parse_config(data))
