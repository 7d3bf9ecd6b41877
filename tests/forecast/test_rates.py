"""Rates: every stage's own code on random weights, under the real meter; what a forecast makes of them."""

import json
import math
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import yaml

from distill_energy.config.load import load_config, parse_config
from distill_energy.errors import UserError
from distill_energy.forecast import bench
from distill_energy.forecast.cases import cases
from distill_energy.forecast.forecast import plan_forecast
from distill_energy.forecast.memory import too_large
from distill_energy.forecast.rates import (
    Rates,
    _Run,
    interval,
    main,
    measure,
    presets,
    read_rates,
    rows_of,
    write_rates,
)
from distill_energy.forecast.workload import Sizes
from distill_energy.plan import build_plan
from tests.energy.fakes import FakePowercap, RaplDriver

WATTS = 40.0
UNHEARD = lambda text: None  # noqa: E731


@pytest.fixture(scope="module")
def smoke(repo):
    config = load_config(repo / "configs" / "smoke.yaml")
    return config, {c.name: c for c in cases(config, build_plan(config))}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A CPU of 40 W whose counter the real meter reads."""
    powercap = FakePowercap(tmp_path_factory.mktemp("host") / "powercap")
    zone = powercap.zone("intel-rapl:0", "package-0", 2**62)
    with RaplDriver([(zone, WATTS, 2**62, 0)]):
        yield {"interval_s": 0.1, "cpu": "rapl", "powercap": str(powercap.root), "gpu": False}


@pytest.fixture(autouse=True)
def short(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "LEAST_S", 0.3)
    monkeypatch.setenv("DISTILL_ENERGY_LOCKS", str(tmp_path / "locks"))


def run(smoke, host, name, folder, budget=2.0, **changes):
    """A case's result and rows, in this process."""
    config, found = smoke
    state = _Run(config, folder, math.inf, UNHEARD)
    job = state._job(found[name], budget) | {"energy": host} | changes
    result = bench.measured(json.loads(json.dumps(job)))
    return result, {row["kind"]: row for row in rows_of(found[name], result, 1e12, None, "test")}


@pytest.mark.parametrize("name", ["reference_logprobs/small/demo", "student_training/dpo/small/demo"])
def test_pairs_are_measured_as_they_are_trained(repo, host, tmp_path, name):
    data = yaml.safe_load((repo / "configs" / "smoke.yaml").read_text(encoding="utf-8"))
    data["pipelines"]["dpo"] = {"kind": "preference"}
    config = parse_config(data)
    found = {c.name: c for c in cases(config, build_plan(config))}
    result, rows = run((config, found), host, name, tmp_path)
    assert result["failed"] is None
    training = {"train", "keep"} if name.startswith("student_training") else set()
    assert set(rows) == {"forward", "start", "each"} | training
    assert rows["train" if training else "forward"]["j_per_token"] > 0
    assert result["facts"]["flops_per_token"]


def test_a_configuration_implies_each_shape_once(smoke, repo):
    assert list(smoke[1]) == [
        "prerun",
        "preprocess/demo",
        "teacher_logits/big/demo",
        "teacher_generation/big/demo",
        "student_training/sft/small/demo",
        "student_training/kd/small/demo",
        "student_training/synthetic/small/demo",
        "evaluation/big",
        "evaluation/small",
    ]
    olmo = load_config(repo / "configs" / "olmo2.yaml")
    names = [c.name for c in cases(olmo, build_plan(olmo))]
    assert len(names) == 1 + 2 + 9 + 4  # three data sets of one length, a sweep and three seeds are one shape each
    assert "student_training/kd/olmo2-13b/at most 1024 tokens" in names


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("teacher_logits/big/demo", {"forward", "start", "each"}),
        ("teacher_generation/big/demo", {"forward", "generate", "start", "each"}),
        ("student_training/kd/small/demo", {"train", "forward", "keep", "start", "each"}),
        ("student_training/synthetic/small/demo", {"train", "forward", "keep", "start", "each"}),
        ("evaluation/small", {"forward", "generate", "start", "each"}),
    ],
)
def test_a_stage_is_measured_at_the_power_that_its_host_draws(smoke, host, tmp_path, name, kinds):
    result, rows = run(smoke, host, name, tmp_path)
    assert result["failed"] is None
    assert set(rows) == kinds
    for kind in kinds - {"keep", "start", "each"}:
        row = rows[kind]
        assert row["tok_s"] == pytest.approx(row["tokens"] / row["seconds"])
        if (
            row["repeats"] > 1 and row["seconds"] > 0.25 and kind != "generate"
        ):  # decoding is a difference of two windows
            assert row["watts"] == pytest.approx(WATTS, rel=0.4)
            assert row["j_per_token"] == pytest.approx(WATTS / row["tok_s"], rel=0.4)
            if row["j_per_token_low"] is not None:  # none where a short window saw no tick of the counter
                assert row["j_per_token_low"] < row["j_per_token"] * 1.01
                assert row["j_per_token_high"] > row["j_per_token"] * 0.99
        assert row["net_j_per_token"] is None  # no idle baseline was given
        assert "no idle power" in row["reason"]
        assert row["peak_bytes"] > 0
        assert json.loads(row["provenance"])["hardware"]["cpu"]
    assert rows["each"]["joules"] == pytest.approx(WATTS * rows["each"]["seconds"], rel=0.3, abs=0.5 * WATTS)


def test_net_leaves_out_what_an_idle_host_draws(smoke, host, tmp_path):
    idle = {"host": socket.gethostname(), "watts": {"package-0": 30.0}, "seconds": 5.0}
    _, rows = run(smoke, host, "teacher_logits/big/demo", tmp_path, idle=idle)
    row = rows["forward"]
    assert row["net_j_per_token"] == pytest.approx(row["j_per_token"] - 30.0 / row["tok_s"], rel=0.02)


def test_without_a_meter_joules_are_null_with_the_reason(smoke, host, tmp_path):
    _, rows = run(smoke, host, "teacher_logits/big/demo", tmp_path, energy=host | {"cpu": "off"})
    assert rows["forward"]["tok_s"] > 0
    assert rows["forward"]["j_per_token"] is None
    assert "no joules" in rows["forward"]["reason"]


def test_a_stated_shape_is_what_is_measured(smoke, host, tmp_path):
    shape = {"model_type": "olmo2", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}
    found = smoke[1]
    params = found["teacher_logits/big/demo"].job["params"]
    model = {"source": "hub", "id": "nobody/nothing", "shape": shape}
    result, rows = run(smoke, host, "teacher_logits/big/demo", tmp_path, params=params | {"model": model})
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96 + 64 + 32 + 2 * 64
    assert rows["forward"]["parameters"] == 2 * 512 * 64 + 2 * layer + 64
    assert result["facts"]["flops_per_token"]["forward"] > 2 * layer


def test_a_model_without_weights_or_shape_says_so(smoke, host, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    params = smoke[1]["teacher_logits/big/demo"].job["params"]
    model = {"source": "hub", "id": "nobody/nothing"}
    result, rows = run(smoke, host, "teacher_logits/big/demo", tmp_path, params=params | {"model": model})
    assert "models.NAME.shape" in result["failed"]
    assert "models.NAME.shape" in rows[None]["reason"]


def test_what_does_not_fit_is_named_with_the_parallelism_that_would(repo):
    config = load_config(repo / "configs" / "olmo2.yaml")
    sizes = Sizes(config.model_dump(mode="json"))
    found = {c.name: c for c in cases(config, build_plan(config))}
    reasons = {}
    for name, case in found.items():
        if case.model is not None:
            reasons[name] = too_large(case.stage, case.job["params"], sizes.parameters(case.model), 48e9, "a card")
    teacher = reasons["teacher_logits/olmo2-32b/at most 1024 tokens"]
    assert "64.5 GB" in teacher
    assert "2 cards would" in teacher
    assert "tensor_parallel: 2" in reasons["teacher_generation/olmo2-32b/at most 1024 tokens"]
    assert "processes: 2" in reasons["student_training/sft/olmo2-13b/at most 1024 tokens"]
    assert reasons["student_training/sft/olmo2-7b/at most 1024 tokens"] is None
    assert too_large("teacher_logits", {}, 32.2e9, 80e9, "a card") is None


def test_out_of_memory_is_a_row_and_ends_no_other(smoke, tmp_path, monkeypatch):
    config, _ = smoke
    lost = {"windows": [], "facts": {}, "notes": [], "failed": "CUDA out of memory", "out_of_memory": True}
    monkeypatch.setattr(_Run, "run", lambda self, case, left: dict(lost))
    rows = measure(config, 1.0, "test", UNHEARD)
    assert len(rows) == 9
    row = next(r for r in rows if r["stage"] == "student_training")
    assert row.get("kind") is None
    assert "training.sharding: full with processes: 2" in row["reason"]


def test_interval_of_repeats_is_students():
    low, high = interval([1.0, 1.1, 0.9, 1.0])
    logs = [math.log(v) for v in (1.0, 1.1, 0.9, 1.0)]
    mean = sum(logs) / 4
    sd = math.sqrt(sum((v - mean) ** 2 for v in logs) / 3)
    assert high == pytest.approx(math.exp(mean + 2.3534 * sd / 2), rel=1e-3)
    assert low == pytest.approx(math.exp(mean - 2.3534 * sd / 2), rel=1e-3)
    assert interval([1.0]) is None


def rate(stage, kind, j, tok_s, model="small", **more):
    base = {"stage": stage, "model": model, "kind": kind, "j_per_token": j, "tok_s": tok_s, "watts": 1.0}
    base |= {"pipeline": None, "pipeline_kind": None, "data": None, "parameters": None, "facts": None, "joules": 1.0}
    span = {"j_per_token_low": j and j * 0.99, "j_per_token_high": j and j * 1.01}
    return base | span | {"notes": []} | more


def test_a_forecast_takes_rates_before_any_guess(smoke, tmp_path):
    config, _ = smoke
    rows = [
        rate("student_training", "train", 2.0, 50.0, pipeline=name, pipeline_kind=name) for name in ("sft", "kd")
    ] + [rate("student_training", "forward", 0.5, 200.0, pipeline=name, pipeline_kind=name) for name in ("sft", "kd")]
    known = Rates(rows, "rates test")
    result = plan_forecast(config, tmp_path, rates=known)
    by_name = {(row["pipeline"]): row for row in result.executions if row["stage"] == "student_training"}
    assert by_name["sft"]["source"] == "rates test"
    assert "preset" in by_name["synthetic"]["source"]
    assert "rates test for 2 of" in result.basis
    doubled = Rates([{**r, "j_per_token": 2 * r["j_per_token"]} for r in rows], "rates test")
    twice = plan_forecast(config, tmp_path, rates=doubled)
    again = next(row for row in twice.executions if row["pipeline"] == "sft")
    assert again["likely_kwh"] > 1.8 * by_name["sft"]["likely_kwh"]
    why = {row["pipeline"]: row["saving"] for row in result.break_even}
    assert why["kd"] == "measured rates"


def test_a_rate_speaks_for_its_shape_under_any_name():
    known = Rates([rate("teacher_logits", "forward", 0.1, 6000.0, model="a", parameters=32_234_279_936)])
    assert known.find("teacher_logits", "b", 32.2e9) is not None
    assert known.find("teacher_logits", "b", 13.7e9) is None
    assert known.find("teacher_generation", "b", 32.2e9) is None


def test_lengths_that_were_seen_replace_the_guess(smoke, tmp_path):
    config, _ = smoke
    facts = json.dumps({"tokens_per_example": 60.0, "labels_per_example": 20.0, "rows": 30, "rows_of_stage": 30})
    known = Rates([rate("preprocess", "each", None, None, model=None, data="demo", facts=facts)])
    assert known.lengths() == {"demo": (60.0, 20.0)}
    sizes = Sizes(config.model_dump(mode="json"), tmp_path, known.lengths())
    assert sizes.lengths("demo") == ((60.0,) * 3, (20.0,) * 3)


def test_file_and_presets_are_read_back(tmp_path):
    path = tmp_path / "rates.parquet"
    write_rates(path, [rate("teacher_logits", "forward", 0.1, 6000.0), {"stage": "evaluation", "reason": "too large"}])
    assert [row["stage"] for row in read_rates(path)] == ["teacher_logits", "evaluation"]
    for name in presets():
        for row in read_rates(name):
            told = json.loads(row["provenance"])
            assert told["driver"], f"{name}: no driver"
            assert told["command"], f"{name}: no command"
            assert row["measured_utc"]
            assert row["tok_s"] * row["j_per_token"] == pytest.approx(row["watts"], rel=0.03)
    assert "h200-olmo2" in presets()
    with pytest.raises(UserError, match="h200-olmo2"):
        read_rates("h201")
    (tmp_path / "no.parquet").write_text("nothing")
    with pytest.raises(UserError, match=r"no\.parquet"):
        read_rates(tmp_path / "no.parquet")


def test_the_shipped_rates_serve_the_published_study(repo, tmp_path):
    config = load_config(repo / "configs" / "olmo2.yaml")
    result = plan_forecast(config, tmp_path, rates=Rates(read_rates("h200-olmo2"), "rates h200-olmo2"))
    rows = [row for row in result.executions if row["source"].startswith("rates")]
    assert {row["stage"] for row in rows} == {"teacher_logits", "teacher_generation", "student_training", "evaluation"}
    trained = {(row["pipeline"], row["student"]) for row in rows if row["stage"] == "student_training"}
    assert trained == {("sft", "olmo2-1b"), ("kd", "olmo2-1b"), ("sft", "olmo2-13b")}  # nothing else was measured
    answers = {row["source"] for row in rows if row["stage"] == "teacher_generation"}
    assert answers == {"rates h200-olmo2, by transformers"}  # the study asks for vLLM


def test_neighbours_are_seen_and_widen_what_a_rate_says():
    spin = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as other:
        time.sleep(0.3)
        watch = bench.Neighbours()
        time.sleep(1.0)
        share = watch.share()
        other.kill()
    assert share > 0.2 / psutil.cpu_count()
    quiet = Rates([rate("teacher_logits", "forward", 0.1, 60.0, facts=json.dumps({"neighbours": 0.0}))])
    busy = Rates([rate("teacher_logits", "forward", 0.1, 60.0, facts=json.dumps({"neighbours": 0.4}))])
    spread = [rates.find("teacher_logits", "small").log_sd("forward") for rates in (quiet, busy)]
    assert spread[0] < 0.01
    assert spread[1] > 0.5


def test_a_case_has_the_threads_of_a_stage_whatever_the_shell_says(smoke, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    config, found = smoke
    state = _Run(config, tmp_path, time.monotonic() + 4, UNHEARD, cores=2)
    result = state.run(found["teacher_logits/big/demo"], 1)
    assert result["failed"] is None
    assert result["facts"]["threads"] == 2  # snakemake --cores 2 gives a stage two


def test_cores_that_are_not_there_are_refused(smoke):
    with pytest.raises(UserError, match="--cores 100000"):
        measure(smoke[0], 1.0, "", UNHEARD, cores=100_000)


def test_time_that_is_stated_is_spent_at_the_power_of_the_long_windows(smoke, tmp_path):
    """A window too short for the sensor's steps tells little of the power."""
    config, _ = smoke
    rows = [
        rate("evaluation", "forward", 0.1, 40.0, watts=4.0, seconds=20.0),
        rate("evaluation", "generate", 0.8, 10.0, watts=80.0, seconds=0.02),
        rate("evaluation", "start", None, None, seconds=1.0),
    ]
    result = plan_forecast(config, tmp_path, rates=Rates(rows))
    row = next(row for row in result.executions if row["stage"] == "evaluation" and row["student"] == "small")
    assert row["likely_kwh"] * 3.6e6 / row["seconds"] < 6.0


def test_bad_minutes_are_refused(smoke):
    with pytest.raises(UserError, match="minutes"):
        measure(smoke[0], 0.0, "", UNHEARD)


def test_a_stage_that_is_none_is_refused(smoke):
    with pytest.raises(UserError, match="student_trainings"):
        measure(smoke[0], 1.0, "", UNHEARD, only=["student_trainings"])


def test_some_stages_alone(smoke, monkeypatch):
    lost = {"windows": [], "facts": {}, "notes": [], "failed": "no", "out_of_memory": False}
    monkeypatch.setattr(_Run, "run", lambda self, case, left: dict(lost))
    seen = []
    rows = measure(smoke[0], 1.0, "", UNHEARD, ["evaluation"], lambda rows: seen.append(len(rows)))
    assert [row["stage"] for row in rows] == ["prerun", "preprocess", "evaluation", "evaluation"]
    assert seen == [1, 2, 3, 4]


def test_a_shape_with_a_typo_is_refused(repo, capsys):
    data = load_config(repo / "configs" / "olmo2.yaml").model_dump(mode="json")
    data["models"]["olmo2-1b"]["shape"]["hiden_size"] = 3
    with pytest.raises(UserError, match="hiden_size"):
        parse_config(data)


@pytest.mark.slow
def test_the_command_measures_a_whole_study(repo, tmp_path):
    """Each case in a process of its own, and a forecast from what they found."""
    out = tmp_path / "rates.parquet"
    assert main([str(repo / "configs" / "smoke.yaml"), "--out", str(out), "--minutes", "0.9"]) == 0
    rows = read_rates(out)
    assert {row["stage"] for row in rows} >= {"prerun", "preprocess", "teacher_logits", "student_training"}
    config = load_config(repo / "configs" / "smoke.yaml")
    result = plan_forecast(config, tmp_path / "none", rates=Rates(rows, "rates here"))
    assert sum(row["source"] == "rates here" for row in result.executions) >= 5
    assert SimpleNamespace(**rows[0]).execution
