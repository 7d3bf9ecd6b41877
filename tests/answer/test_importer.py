"""Logs of the reference harness become sidecars of the same accounting."""

import json
import math
import shutil

import pytest

from distill_energy.__main__ import main
from distill_energy.answer.aggregate import answer
from distill_energy.errors import UserError
from distill_energy.published.importer import import_runs
from distill_energy.published.power_log import integrate, read_power_log
from distill_energy.store.sidecar import read

T0 = 1_769_378_000.0


def write_stage(root, run, stage_id, watts, seconds=60.0, said=None, interval=0.5, gap=None, **more):
    """A stage folder as the harness lays it out: <run>/stages/<id>/<id>.json and power_log.csv."""
    folder = root / run / "stages" / stage_id
    folder.mkdir(parents=True)
    data = {
        "stage_id": stage_id,
        "stage_name": stage_id,
        "start_time": T0,
        "end_time": T0 + seconds,
        "duration_seconds": seconds,
        "tokens_processed": 100,
        "gpu_energy_joules": watts * seconds if said is None else said,
        "cpu_energy_joules": 0.0,
        "total_energy_joules": watts * seconds,
        "codecarbon_ram_energy_kwh": 0.001,
        "nvml_poll_interval_ms": int(interval * 1000),
        **more,
    }
    (folder / f"{stage_id}.json").write_text(json.dumps(data))
    (folder / f"{stage_id}__step100.json").write_text(json.dumps(data))  # a snapshot is no stage
    (folder / "experiment_summary.json").write_text("{}")
    lines = ["timestamp,gpu_0_power_w,total_power_w"]
    t = T0 + 0.1
    while t < T0 + seconds:
        if gap is None or not gap[0] <= t - T0 < gap[1]:
            lines.append(f"{t},{watts},{watts}")
        t += interval
    (folder / "power_log.csv").write_text("\n".join(lines) + "\n")
    return root / run


def test_trapezoids_with_held_edges_are_exact_for_constant_and_linear_power():
    assert integrate([(10.0, 300.0), (50.0, 300.0)], 0.0, 60.0) == pytest.approx(18_000)
    ramp = [(float(t), float(t)) for t in range(0, 61)]
    assert integrate(ramp, 0.0, 60.0) == pytest.approx(1_800)


def test_a_campaign_of_the_harness_gives_n_star(tmp_path):
    """11 / (6.3 − 5.2) kWh, in watts over ten hours, from logs alone."""
    runs = [
        write_stage(tmp_path, "cache_32b", "kd_logit_caching", 1100.0, 36_000.0, interval=600),
        write_stage(tmp_path, "sft_32b_to_1b", "student_train", 630.0, 36_000.0, interval=600),
        write_stage(tmp_path, "kd_32b_to_1b", "student_train", 520.0, 36_000.0, interval=600),
    ]
    out = tmp_path / "results"
    folders = import_runs(runs, out, teacher="32b").folders
    assert len(folders) == 3
    _, summary, problems = answer([out])
    assert problems == []
    row = next(r for r in summary if r["pipeline"] == "kd")
    assert row["e_student_kwh"] == pytest.approx(5.2)
    assert row["e_teacher_kwh"] == pytest.approx(11.0)
    assert row["n_star"] == pytest.approx(10.0)
    assert row["n_reuse"] == 1
    assert row["e_oneoff_kwh"] is None  # it was not evaluated, and an unknown evaluation is not free
    assert row["q"] is None


def test_what_was_not_recorded_is_unknown_and_said(tmp_path):
    run = write_stage(tmp_path, "kd_32b_to_1b", "prerun_burn_in", 300.0)
    sidecar = read(import_runs([run], tmp_path / "out").folders[0] / "energy.json")
    gpu, cpu, dram = sidecar.energy.components
    assert gpu.gross_j == pytest.approx(18_000)
    assert gpu.crosscheck_j == pytest.approx(18_000)
    assert gpu.idle_j is None
    assert cpu.gross_j is None
    assert not cpu.in_total
    assert not dram.in_total  # a flat RAM model is no measurement
    assert sidecar.energy.gross_j == gpu.gross_j
    assert "gpu_only" in sidecar.quality.flags
    assert sidecar.tokens.processed is None
    assert sidecar.results["harness_tokens_processed"] == 100


def test_a_dead_poller_is_flagged_with_its_coverage(tmp_path):
    run = write_stage(tmp_path, "kd_32b_to_1b", "burn_in", 100.0, seconds=600.0, gap=(10, 600))
    sidecar = read(import_runs([run], tmp_path / "out").folders[0] / "energy.json")
    assert "gap" in sidecar.quality.flags
    assert sidecar.quality.largest_gap_s == pytest.approx(590, abs=1)
    assert sidecar.quality.coverage == pytest.approx(10 / 600, abs=0.002)


def test_codecarbons_cpu_value_is_an_estimate_and_rapls_is_measured(tmp_path):
    kwh = 0.01
    same = write_stage(tmp_path, "a", "burn_in", 100.0, cpu_energy_joules=kwh * 3.6e6, codecarbon_cpu_energy_kwh=kwh)
    other = write_stage(tmp_path, "b", "burn_in", 100.0, cpu_energy_joules=5000.0, codecarbon_cpu_energy_kwh=kwh)
    cpus = [
        read(import_runs([r], tmp_path / f"o{i}").folders[0] / "energy.json").energy.components[1]
        for i, r in enumerate((same, other))
    ]
    assert [c.source for c in cpus] == ["estimated", "measured"]
    assert cpus[1].crosscheck_j == pytest.approx(36_000)


def test_the_trace_of_a_real_h100_integrates_to_its_known_joules(tmp_path, reference_data):
    """1,665 s of KD training, 0.5 s polling, two gaps above 1 s, the largest 7.6 s."""
    source = reference_data / "h100_traces" / "kd_32b_to_13b_power.csv"
    log = read_power_log(source)
    readings, gpus = log.readings, log.gpus
    assert gpus == ("gpu_0_power_w",)
    start, end = readings[0][0], readings[-1][0]
    assert integrate([(t, w[0]) for t, w in readings], start, end) == pytest.approx(782_035, abs=1)
    run = write_stage(tmp_path, "kd_32b_to_13b", "burn_in", 1.0, start_time=start, end_time=end, said=782_035.0)
    shutil.copy(source, run / "stages" / "burn_in" / "power_log.csv")
    sidecar = read(import_runs([run], tmp_path / "out").folders[0] / "energy.json")
    assert sidecar.quality.largest_gap_s == pytest.approx(7.6, abs=0.05)
    assert sidecar.quality.interval_reached_s == pytest.approx(0.5, abs=0.01)
    assert math.isclose(sidecar.energy.gross_j, 782_035, rel_tol=1e-5)
    from distill_energy.report.figures.power import read_trace

    ((seconds, watts),) = read_trace((tmp_path / "out").glob("prerun/host/*/power.parquet").__next__()).values()
    assert len(seconds) == len(watts) == len(readings)


def test_bad_logs_are_named(tmp_path):
    run = write_stage(tmp_path, "kd_32b_to_1b", "burn_in", 100.0)
    log = run / "stages" / "burn_in" / "power_log.csv"
    text = log.read_text()
    log.write_text(text.replace("100.0", "-5", 1))
    with pytest.raises(UserError, match=r"power_log.csv: line 2: watts are finite and not negative"):
        import_runs([run], tmp_path / "out")
    log.write_text(text + "17693")  # torn last line: left out
    assert import_runs([run], tmp_path / "out").folders
    log.write_text("time,watts\n1,2\n")
    with pytest.raises(UserError, match="expected columns"):
        import_runs([run], tmp_path / "out")
    with pytest.raises(UserError, match="no stage of the reference harness"):
        import_runs([tmp_path / "nothing"], tmp_path / "out")


def test_kd_without_its_teachers_stage_is_refused(tmp_path):
    run = write_stage(tmp_path, "kd_32b_to_1b", "student_train", 100.0)
    with pytest.raises(UserError, match="import that too"):
        import_runs([run], tmp_path / "out")


def test_command(tmp_path, capsys):
    run = write_stage(tmp_path, "x", "strange", 100.0)
    assert main(["import", str(run), "--out", str(tmp_path / "out")]) == 1
    assert "pass --stage" in capsys.readouterr().err
    assert main(["import", str(run), "--out", str(tmp_path / "out"), "--stage", "prerun"]) == 0
    assert "1.67 Wh, measured" in capsys.readouterr().out
