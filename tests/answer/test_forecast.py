"""The forecast: FLOPs by hand, ranges that hold, measurement beside it."""

import pytest

from distill_energy.config.load import load_config, parse_config
from distill_energy.errors import UserError
from distill_energy.forecast.forecast import (
    Basis,
    calibration,
    choose_basis,
    earlier_rates,
    forecast,
    plan_forecast,
    preset,
)
from distill_energy.forecast.workload import Sizes, Term, benchmark_tokens, from_dict, plus, times, workload

HOST = Basis(1e12, (100.0, 100.0, 100.0), "calibration of a test host")


def one(kind="train", tokens=1e6, parameters=1e9, **more):
    return from_dict({"stage": "student_training", "kind": kind, "parameters": parameters, "tokens": tokens, **more})


def test_flops_are_six_and_two_a_parameter_and_token():
    assert Term("train", 1e9, (1.0, 2.0, 3.0)).flops == (6e9, 12e9, 18e9)
    assert Term("forward", 1e9, (1.0, 1.0, 1.0)).flops[0] == 2e9
    assert plus((1, 2, 3), (1, 1, 1)) == (2, 3, 4)
    assert times((1, 2, 3), 2.0) == (2, 4, 6)


def test_the_interval_holds_the_hand_calculation():
    result = forecast([one(seconds=0)], HOST)
    row = result.stages[0]
    # 6 · 1e9 · 1e6 FLOPs at 32 % of 1e12 FLOP/s and 85 W
    seconds = 6e15 / (0.32 * 1e12)
    assert row["low_seconds"] < seconds < row["high_seconds"]
    assert row["likely_seconds"] == pytest.approx(seconds, rel=0.15)
    assert row["low_kwh"] < seconds * 85 / 3.6e6 < row["high_kwh"]


def test_energy_scales_with_tokens_and_parameters():
    likely = [
        forecast([w], HOST).stages[0]["likely_kwh"]
        for w in (one(seconds=0), one(seconds=0, tokens=2e6), one(seconds=0, parameters=3e9))
    ]
    assert likely[1] == pytest.approx(2 * likely[0], rel=1e-6)
    assert likely[2] == pytest.approx(3 * likely[0], rel=1e-6)


def test_shared_uncertainty_does_not_average_out():
    works = [one(name=f"r{i}", version=str(i)) for i in range(50)]
    single, total = forecast(works[:1], HOST).stages[0], forecast(works, HOST).stages[-1]
    assert total["stage"] == "total"
    assert total["executions"] == 50
    assert total["high_kwh"] / total["likely_kwh"] == pytest.approx(single["high_kwh"] / single["likely_kwh"], rel=0.02)


def test_co2e_and_storage():
    work = one(bytes_per_token=250.0)
    row = forecast([work], HOST, pue=1.2, intensity_g_per_kwh=400.0).stages[0]
    assert row["likely_bytes"] == pytest.approx(2.5e8)
    assert row["likely_co2e_g"] == pytest.approx(row["likely_kwh"] * 480)
    assert forecast([work], HOST).stages[0]["likely_co2e_g"] is None


def test_a_model_of_unknown_size_is_named_and_not_counted_as_nothing():
    result = forecast([one(parameters=None), one()], HOST)
    assert "parameter count" in result.unknown[0]
    assert result.stages[0]["unknown"] == 1


def test_presets_are_named_and_others_refused():
    assert "preset h100-80gb" in forecast([one()], preset("h100-80gb")).basis
    with pytest.raises(UserError, match="h100-80gb"):
        preset("h1000")


def test_calibration_of_this_host_is_the_basis(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "prerun" / "host" / "v"
    folder.mkdir(parents=True)
    row = {
        "workload": "matmul",
        "device": "cpu",
        "dtype": "bfloat16",
        "flops_per_s": 2e11,
        "seconds": 4.0,
        "watts": 12.0,
        "reason": None,
    }
    pq.write_table(pa.Table.from_pylist([row]), folder / "calibration.parquet")
    basis = calibration(folder / "calibration.parquet")
    assert basis.flops_per_s == 2e11
    assert basis.watts[1] == 12.0
    config = {"energy": {"expect": {"gpu_name": "H100"}}}
    assert choose_basis(config, tmp_path, None) == basis
    assert "h100" in choose_basis(config, tmp_path / "none", None).source
    assert calibration(folder / "absent.parquet") is None


def row(stage="student_training", pipeline="kd", student="s", joules=100.0, tokens=50, key="v", **more):
    base = {"stage": stage, "name": "n", "version": key, "status": "ok", "pipeline": pipeline, "student": student}
    return (
        base
        | {"teacher": "t", "total_j": joules, "processed_tokens": tokens, "wall_s": 5.0, "produced_bytes": 10}
        | more
    )


def test_an_earlier_ledger_replaces_the_flops_where_stage_and_model_agree():
    rows = [row(joules=100.0 + i, key=str(i)) for i in range(5)]
    rate = earlier_rates(rows)["student_training", "kd", "s"]
    assert rate.joules == pytest.approx(102 / 50, rel=0.01)
    assert rate.n == 5
    work = one(tokens=1000, labels={"pipeline": "kd", "student": "s"})
    known = forecast([work], HOST, earlier=rows)
    assert known.executions[0]["source"] == "5 earlier executions"
    assert known.executions[0]["likely_kwh"] == pytest.approx(1000 * 102 / 50 / 3.6e6, rel=0.05)
    other = forecast([one(tokens=1000, labels={"pipeline": "kd", "student": "other"})], HOST, earlier=rows)
    assert other.executions[0]["source"] == HOST.source


def test_measurement_stands_beside_the_forecast_only_when_complete():
    works = [one(name="n", version="0"), one(name="n", version="1")]
    half = forecast(works, HOST, done=[row(key="0", joules=3.6e6)])
    assert half.stages[0]["measured_kwh"] is None
    assert half.stages[0]["measured_executions"] == 1
    both = forecast(works, HOST, done=[row(key="0", joules=3.6e6), row(key="1", joules=3.6e6)])
    assert both.stages[0]["measured_kwh"] == pytest.approx(2.0)
    assert both.executions[0]["measured_kwh"] == pytest.approx(1.0)


@pytest.fixture(scope="module")
def default(repo):
    return load_config(repo / "config.yaml")


def test_the_default_plan_is_forecast_stage_by_stage(default, tmp_path):
    result = plan_forecast(default, tmp_path, preset_name="cpu-2-cores")
    assert result.unknown == []
    stages = {r["stage"]: r for r in result.stages}
    assert list(stages) == [
        "prerun",
        "preprocess",
        "teacher_logits",
        "teacher_generation",
        "student_training",
        "contamination",
        "evaluation",
        "total",
    ]
    runs = len(default.students) * len(default.seeds) * len(default.pipelines)
    assert stages["student_training"]["executions"] == runs
    assert all(r["low_kwh"] < r["likely_kwh"] < r["high_kwh"] for r in result.stages)
    assert {(r["pipeline"], r["student"]) for r in result.break_even} == {
        (p, s) for p in ("kd", "synthetic") for s in default.students
    }
    assert all(r["planned_n"] == len(default.students) * len(default.seeds) for r in result.break_even)
    assert all("published" in r["saving"] for r in result.break_even)


def test_bigger_teachers_move_the_break_even_out(default, tmp_path):
    plain = default.model_dump(mode="json")
    first = plan_forecast(default, tmp_path, preset_name="cpu-2-cores")
    plain["datasets"]["demo"]["n_train"] *= 3
    second = plan_forecast(parse_config(plain), tmp_path, preset_name="cpu-2-cores")
    one, other = (next(r["n_star"] for r in f.break_even if r["pipeline"] == "kd") for f in (first, second))
    assert 2 < other / one < 3.2


def test_lengths_come_from_the_data_set_once_it_exists(default, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from distill_energy.plan import build_plan

    plan = build_plan(default, str(tmp_path))
    data = next(s for s in plan.of("preprocess") if s.name.startswith("data-"))
    folder = tmp_path / "preprocess" / data.name / data.version
    folder.mkdir(parents=True)
    pq.write_table(
        pa.table({"input_ids": [[1] * 40, [1] * 60], "loss_mask": [[1] * 10, [1] * 20]}), folder / "train.parquet"
    )
    sizes = Sizes(default.model_dump(mode="json"), tmp_path)
    assert sizes.lengths("demo", data.version) == ((50.0,) * 3, (15.0,) * 3)
    logits = plan.of("teacher_logits")[0]
    (term,) = workload(logits.to_json(), sizes).terms
    assert term.tokens == (default.datasets["demo"].n_train * 50.0,) * 3
    assert term.parameters == pytest.approx(134_515_008, rel=0.001)


def test_the_full_scale_plan_is_forecast_from_the_stated_sizes(repo, tmp_path):
    config = load_config(repo / "configs" / "olmo2.yaml")
    result = plan_forecast(config, tmp_path)
    assert "h100" in result.basis
    assert result.unknown == []
    assert result.stages[-1]["likely_co2e_g"] > 0
    thirteen = [e for e in result.executions if e["student"] == "olmo2-13b" and e["stage"] == "student_training"]
    one = [e for e in result.executions if e["student"] == "olmo2-1b" and e["stage"] == "student_training"]
    assert thirteen[0]["likely_kwh"] / one[0]["likely_kwh"] == pytest.approx(13716 / 1485, rel=0.1)


def test_benchmarks_are_counted_by_their_definition():
    forward, new, seconds = benchmark_tokens(
        {"kind": "lm_eval", "task": "gsm8k", "few_shot": 8, "limit": 100}, (1, 1, 1)
    )
    assert forward[1] == 100 * 120 * 9
    assert new[2] == 100 * 200
    assert seconds == (0, 0, 0)
    assert benchmark_tokens({"kind": "inference", "batch_sizes": [1, 8], "min_seconds": 2}, (1, 1, 1))[2][0] == 8
    served = {"kind": "inference", "engine": "vllm", "requests": 10, "prompt_tokens": 5, "new_tokens": 7}
    forward, new, _ = benchmark_tokens({**served, "concurrency": [1, 8]}, (1, 1, 1))
    assert (forward, new) == (3 * (2 * 2 * 50,), 3 * (2 * 70,))  # a pass of prefills and one of answers each


def test_command_writes_figure_and_table(repo, tmp_path, capsys):
    from distill_energy.__main__ import main

    arguments = ["forecast", str(repo / "config.yaml"), "--results", str(tmp_path / "none"), "--preset", "cpu-2-cores"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "would pay back after" in printed
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "forecast.csv",
        "forecast.pdf",
        "forecast.png",
        "forecast.svg",
    ]
    assert main([*arguments, "--earlier", str(tmp_path / "no.parquet")]) == 1
