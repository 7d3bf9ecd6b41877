"""Measure any command; export it."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from distill_energy.energy import MeterConfig
from distill_energy.energy.__main__ import main
from distill_energy.energy.boamps import to_boamps
from distill_energy.energy.command import run_command
from distill_energy.energy.host import describe_hardware, describe_software
from distill_energy.errors import UserError
from distill_energy.store import sidecar as schema

from .fakes import Power

FAST = MeterConfig(interval_s=0.05, cpu="off")


def only(folder):
    (path,) = folder.glob("command/*/*/energy.json")
    return path


def test_command_writes_the_same_sidecar(gpus, tmp_path):
    gpus.add(Power("const", 250.0))
    record, code = run_command([sys.executable, "-c", "import time; time.sleep(0.5)"], tmp_path, "nap", FAST)
    assert code == 0
    path = only(tmp_path)
    again = schema.read(path)
    assert again == record and again.stage == "command" and again.name == "nap"
    assert again.energy.gross_j == pytest.approx(250 * again.attempts[0].wall_s, rel=0.01)
    assert again.energy.wasted_gross_j == 0 and again.results == {"exit_code": 0}
    assert (path.parent / "power.parquet").exists()


def test_many_short_processes_are_not_free(tmp_path):
    """CodeCarbon alone sees none of a thousand processes that live a millisecond each."""
    config = MeterConfig(interval_s=0.2, gpu=False, powercap=str(tmp_path / "none"))
    loop = "end=$(($(date +%s)+4)); while [ $(date +%s) -lt $end ]; do /bin/true; done"
    record, _ = run_command(["sh", "-c", loop], tmp_path, None, config)
    (cpu,) = [c for c in record.energy.components if c.component == "cpu"]
    assert "short_processes" in record.quality.flags
    assert cpu.gross_j == pytest.approx(cpu.crosscheck_j, rel=0.1) and cpu.gross_j > 1


def test_failing_command_is_recorded_as_wasted(gpus, tmp_path):
    gpus.add(Power("const", 250.0))
    record, code = run_command(["sh", "-c", "sleep 0.3; exit 7"], tmp_path, None, FAST)
    assert code == 7 and record.attempts[0].outcome == "failed"
    assert record.energy.wasted_gross_j == record.energy.gross_j > 0


def test_runs_are_never_overwritten(tmp_path):
    config = MeterConfig(interval_s=0.05, cpu="off", gpu=False)
    for _ in range(2):
        run_command(["true"], tmp_path, None, config)
    assert len(list(tmp_path.glob("command/true/*/energy.json"))) == 2


def test_missing_command(tmp_path):
    with pytest.raises(UserError, match="no-such-command"):
        run_command(["no-such-command"], tmp_path, None, MeterConfig(interval_s=0.05, cpu="off", gpu=False))


def cli(*arguments):
    return [sys.executable, "-m", "distill_energy.energy", *map(str, arguments)]


def test_command_line_and_boamps(gpus, tmp_path):
    gpus.add(Power("const", 250.0))
    run = ["run", "--out", tmp_path, "--interval", "0.05", "--cpu", "off", "--country", "FRA", "--", "sleep", "0.4"]
    done = subprocess.run(cli(*run), capture_output=True, text=True)
    assert done.returncode == 0 and "(measured)" in done.stderr and done.stdout == ""
    out = subprocess.run(cli("boamps", only(tmp_path)), capture_output=True, text=True, check=True).stdout
    report = json.loads(out)
    record = schema.read(only(tmp_path))
    assert [gpu.name for gpu in record.hardware.gpus] == ["Fake-H100"]
    (measure,) = report["measures"]
    assert measure["powerConsumption"] == pytest.approx(record.energy.gross_j / 3.6e6)
    assert measure["gpuTrackingMode"] == "nvml_counter"
    assert measure["measurementDuration"] == pytest.approx(record.attempts[0].wall_s)
    assert report["header"]["formatVersion"] and report["task"]["taskStage"] == "other"
    assert report["quality"] == "high"
    assert report["environment"]["powerSourceCarbonIntensity"] == record.co2e.intensity_g_per_kwh
    assert report["task"]["dataset"] == [{"dataUsage": "input", "dataType": "token"}]
    assert all(isinstance(c.get("memorySize", 0), int) for c in report["infrastructure"]["components"])
    nowhere = record.model_copy(update={"co2e": schema.Co2e(reason="no country")})
    assert "environment" not in to_boamps(nowhere), "the format has no environment without a country"
    shown = subprocess.run(cli("attempts", only(tmp_path).parent), capture_output=True, text=True, check=True).stdout
    assert shown == "", "attempts lie under attempts/"


def test_sigterm_reaches_the_command(gpus, tmp_path):
    gpus.add(Power("const", 250.0))
    stage = subprocess.Popen(
        cli("run", "--out", tmp_path, "--interval", "0.05", "--cpu", "off", "--", "sh", "-c", "echo go; exec sleep 60"),
        stdout=subprocess.PIPE,
        text=True,
    )
    stage.stdout.readline()
    time.sleep(0.3)
    stage.terminate()
    assert stage.wait(20) == 143
    record = schema.read(only(tmp_path))
    assert record.attempts[0].outcome == "preempted" and record.energy.wasted_gross_j > 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["run"], "no command"),
        (["run", "--country", "XXX", "--", "true"], "XXX"),
        (["run", "--interval", "0", "--", "true"], "interval_s"),
        (["boamps", "/nonexistent/energy.json"], "/nonexistent/energy.json"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, word):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert word in err and err.count("\n") == 1


def test_idle_on_the_command_line(gpus, tmp_path, capsys):
    uuid = gpus.add(Power("const", 77.0))
    out = tmp_path / "idle.parquet"
    assert main(["idle", "--seconds", "0.5", "--interval", "0.05", "--cpu", "off", "--out", str(out)]) == 0
    assert f"{uuid}: 77.0" in capsys.readouterr().out and out.exists()


def test_unknown_energy_has_no_boamps_report(tmp_path):
    config = MeterConfig(interval_s=0.05, cpu="rapl", gpu=False, powercap=str(tmp_path / "none"))
    record, _ = run_command(["true"], tmp_path, None, config)
    with pytest.raises(UserError, match="unknown"):
        to_boamps(record)


def test_host_is_described_without_heavy_imports():
    hardware, software = describe_hardware(), describe_software()
    assert hardware.cores >= 1 and hardware.ram_bytes > 2**28 and hardware.host
    assert software.python.startswith("3.") and "codecarbon" in software.packages
    assert len(software.code_digest) == 64
    program = (
        "import sys; from distill_energy.energy.host import describe_hardware, describe_software\n"
        "describe_hardware(); describe_software(); print([m for m in ('torch', 'pandas') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
