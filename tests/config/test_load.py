"""Bad configuration gives one line that names the key and what is allowed."""

import copy

import pytest
import yaml

from distill_energy.config import load_config, parse_config
from distill_energy.errors import UserError


@pytest.fixture
def data(repo):
    return yaml.safe_load((repo / "config.yaml").read_text())


def test_shipped_configurations_are_valid(repo):
    found = [repo / "config.yaml", repo / "configs/smoke.yaml", *(repo / "configs").glob("olmo2*.yaml")]
    for path in found:
        assert load_config(path).students


@pytest.mark.parametrize(
    ("section", "change", "says"),
    [
        ("training", {"lerning_rate": 1}, "training.lerning_rate: unknown key .* allowed: .*learning_rate"),
        ("teacher", {"model": "gpt"}, "teacher.model: 'gpt' is not one of smollm2-135m"),
        ("training", {"learning_rate": -1}, r"training.learning_rate: .*greater than 0 \(found -1\)"),
        ("training", {"micro_batch_size": 3}, "batch_size 4 is not a multiple of micro_batch_size 3"),
        ("evaluation", {"suites": {"demo": ["choice"]}}, "'gold_accuracy' is in no suite"),
        ("evaluation", {"suites": {"a": ["nope"]}}, "suites.a: 'nope' is not one of"),
        ("energy", {"grid": {"g_per_kwh": 5}}, "energy.grid: g_per_kwh needs a source"),
        ("energy", {"pue": 0.5}, "energy.pue: .*greater than or equal to 1"),
        ("accounting", {"baseline": "nope"}, "accounting.baseline: 'nope' is not one of sft, kd, synthetic"),
    ],
)
def test_one_line_for_each_mistake(data, section, change, says):
    data[section].update(change)
    with pytest.raises(UserError, match=says) as caught:
        parse_config(data)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("config.yaml: ")


def test_nested_mistakes(data):
    for change, says in [
        (lambda d: d["pipelines"]["kd"].update(sweep={"alfa": [1]}), "sweep.alfa is not one of alpha"),
        (lambda d: d["pipelines"]["kd"].update(alpha=1.5), "pipelines.kd.alpha"),
        (lambda d: d["models"]["smollm2-6l"].update(of="nope"), "models.smollm2-6l.of: 'nope' is not one of"),
        (lambda d: d["evaluation"]["benchmarks"].update(x={"kind": "nope"}), "evaluation.benchmarks.x"),
        (lambda d: d.update(seeds=[1, 1]), "seeds: 1 is listed twice"),
        (lambda d: d.update(students=[]), "students: is empty"),
        (lambda d: d.update(nope=1), "nope: unknown key"),
        (lambda d: d["models"].update({"a/b": {"source": "hub", "id": "x"}}), "name 'a/b'"),
    ]:
        changed = copy.deepcopy(data)
        change(changed)
        with pytest.raises(UserError, match=says):
            parse_config(changed)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read"):
        load_config(tmp_path / "nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n")
    with pytest.raises(UserError, match=r"broken\.yaml: not YAML"):
        load_config(broken)
