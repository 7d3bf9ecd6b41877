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


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["training"].update(learning_rate=float("inf")), "training.learning_rate: .*finite"),
        (lambda d: d["accounting"].update(confidence=float("nan")), "accounting.confidence: .*finite"),
        (
            lambda d: d["pipelines"]["kd"].update(sweep={"alpha": [7]}),
            r"sweep.alpha: .*less than or equal to 1 \(found 7\)",
        ),
        (lambda d: d["pipelines"]["kd"].update(sweep={"temperature": [0]}), "sweep.temperature: .*greater than 0"),
        (lambda d: d["pipelines"]["kd"].update(students=[]), "pipelines.kd.students"),
        (lambda d: d.update(students=[]), "students: is empty"),
        (lambda d: d.update(experiment=b"x"), "experiment: a bytes; quote it"),
        (lambda d: d.update(seeds={1, 2}), "seeds: a set; quote it"),
        (lambda d: d.update(experiment="a\n"), "experiment: name .*letters, digits"),
        (lambda d: d.update(seeds=[-3]), "seeds.0: .*greater than or equal to 0"),
        (lambda d: d.update(seeds=[2**63]), "seeds.0: a number beyond"),
        (lambda d: d["datasets"]["demo"].update(n_train=10**30), "datasets.demo.n_train: a number beyond"),
        (lambda d: d["datasets"]["demo"].update(families=[]), "datasets.demo.*families"),
        (lambda d: d["datasets"]["demo"].update(families=["poems"]), "families"),
        (lambda d: d["evaluation"]["benchmarks"]["inference"].update(batch_sizes=[0]), "batch_sizes"),
        (lambda d: d["evaluation"]["benchmarks"]["inference"].update(batch_sizes=[]), "batch_sizes"),
        (lambda d: d["models"].update(r={"source": "random", "hidden": 32, "heads": 7}), "hidden 32 is not a multiple"),
        (lambda d: d["energy"].update(grid={"country": __import__("datetime").date(2024, 1, 1)}), "country: a date"),
        (lambda d: d["models"].update({"a" * 240: {"source": "hub", "id": "x"}}), "240 characters, 80 at most"),
        (lambda d: d["models"].update({"ab\n": {"source": "hub", "id": "x"}}), "letters, digits"),
        (lambda d: d["teacher"].update(model="a\0b"), "teacher.model: holds a NUL"),
        (
            lambda d: d["evaluation"]["benchmarks"].update({"a/../../x": {"kind": "choice"}}),
            "name 'a/../../x': letters, digits",
        ),
        (lambda d: d.update(trainning=d["training"]), r"did you mean training\?"),
        (lambda d: d.update(trainning=d.pop("training")), r"trainning: unknown key.*did you mean training\?"),
        (
            lambda d: d["evaluation"]["benchmarks"].update(x={"kind": "gold_acuracy"}),
            r"benchmarks\.x\.kind: 'gold_acuracy' is not one of gold_accuracy, .*\(did you mean gold_accuracy\?\)",
        ),
        (lambda d: d["models"].update(x={"source": "hubb", "id": "a"}), r"models\.x\.source: .*did you mean hub\?"),
    ],
)
def test_what_a_stage_could_not_do_is_said_before_any_job(data, change, says):
    change(data)
    with pytest.raises(UserError, match=says) as caught:
        parse_config(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 1: the key 'a' is given twice"),
        ("seeds: [010]\n", "line 1: 010 is octal"),
        ("\xff", "not UTF-8"),
        ("? [1]\n: 2\n", "not YAML|is not a text"),
    ],
)
def test_what_yaml_takes_silently_is_refused(tmp_path, text, says):
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=says):
        load_config(path)


def test_a_bomb_of_aliases_ends_in_one_line(tmp_path):
    lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="more than 200000 values"):
        load_config(tmp_path / "bomb.yaml")
