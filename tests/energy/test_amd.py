"""AMD GPUs: the real package amdsmi on a libamd_smi.so whose energy is known."""

import re
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from distill_energy.energy import Meter, MeterConfig
from distill_energy.energy.host import describe_hardware
from distill_energy.energy.sensors.amd import driver_shows_amd
from distill_energy.energy.sensors.visible import resolve_visible_amd
from distill_energy.store.sidecar import total

from . import fakes
from .fakes import Power

FAST = dict(interval_s=0.05, cpu="off")


@pytest.fixture(scope="session")
def rocm(tmp_path_factory) -> Path:
    """A ROCM_PATH with our lib/libamd_smi.so: the fake, and a stub of whatever else the package looks up."""
    spec = find_spec("amdsmi")
    if spec is None or fakes.compiler() is None:
        pytest.skip("needs the package amdsmi and a C compiler")
    folder = tmp_path_factory.mktemp("rocm")
    text = (Path(spec.origin).parent / "amdsmi_wrapper.py").read_text()
    names = sorted(set(re.findall(r"_libraries\['libamd_smi\.so'\]\.(\w+)", text)))
    stubs = folder / "stubs.c"
    stubs.write_text("".join(f"__attribute__((weak)) int {name}() {{ return 2; }}\n" for name in names))
    (folder / "lib").mkdir()
    command = [fakes.compiler(), "-O1", "-shared", "-fPIC", "-o", folder / "lib" / "libamd_smi.so"]
    subprocess.run([*command, fakes.HERE / "fake_amdsmi.c", stubs, "-lm"], check=True)
    return folder


@pytest.fixture
def amd(rocm, tmp_path, monkeypatch) -> fakes.FakeGpus:
    monkeypatch.setenv("ROCM_PATH", str(rocm))
    monkeypatch.delenv("ROCM_HOME", raising=False)
    monkeypatch.setenv("FAKE_AMDSMI", str(tmp_path / "amdsmi.txt"))
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return fakes.FakeGpus(tmp_path / "amdsmi.txt")


def add(amd, power, *lines):
    return "GPU-" + amd.add(power, *lines, uuid=f"{len(amd.gpus) + 1:016x}", name="MI300X")


def gpus(attempt):
    return [c for c in attempt.components if c.component == "gpu"]


def truth(amd, attempt, index=0):
    return amd.truth(index, attempt.start_mono_s, attempt.end_mono_s)


def test_accumulator_times_resolution_is_the_energy(amd, tmp_path):
    one, two = add(amd, Power("const", 550.0)), add(amd, Power("square", 140.0, 700.0, 0.3), "resolution 1.0")
    with Meter(tmp_path / "a", MeterConfig(**FAST)) as meter:
        time.sleep(1.5)
    first, second = gpus(meter.attempt)
    assert (first.device, second.device) == (one, two)
    assert first.gross_j == pytest.approx(truth(amd, meter.attempt), rel=2e-3) and first.source == "measured"
    assert second.gross_j == pytest.approx(truth(amd, meter.attempt, 1), rel=2e-2)
    assert first.method == "amdsmi_counter" and first.crosscheck_method == "amdsmi_field_instant"
    assert first.crosscheck_j == pytest.approx(first.gross_j, rel=0.02)
    assert meter.attempt.quality.flags == []
    assert meter.joules() == pytest.approx(first.gross_j + second.gross_j, rel=1e-3)
    (health, _) = meter.attempt.health
    assert (health.temperature_c.median, health.sm_clock_mhz.max, health.utilisation.median) == (61, 2100, 0.97)


@pytest.mark.parametrize("lines", [(), ("average",)])
def test_power_alone_where_there_is_no_accumulator(amd, tmp_path, lines):
    add(amd, Power("const", 300.0), "nocounter", *lines)
    with Meter(tmp_path / "a", MeterConfig(**FAST)) as meter:
        time.sleep(0.5)
    (gpu,) = gpus(meter.attempt)
    assert gpu.gross_j == pytest.approx(truth(amd, meter.attempt), rel=0.01)
    assert gpu.method == "amdsmi_power_integral" and gpu.crosscheck_j is None


def test_an_accumulator_that_is_off_is_flagged_by_the_power(amd, tmp_path):
    add(amd, Power("const", 600.0), "scale 1.2")
    with Meter(tmp_path / "a", MeterConfig(**FAST)) as meter:
        time.sleep(2.0)
    assert "disputed" in meter.attempt.quality.flags


def test_a_wrap_is_undone(amd, tmp_path):
    """Between two readings the accumulator passes 2^64, after which it counts from 0."""
    soon = amd.now() + 1.2
    counts = round(500.0 * soon / 15.259e-6)
    add(amd, Power("const", 500.0), f"start {2**64 - counts}")
    with Meter(tmp_path / "a", MeterConfig(**FAST)) as meter:
        time.sleep(max(0.0, soon - amd.now()) + 0.6)
    (gpu,) = gpus(meter.attempt)
    assert gpu.gross_j == pytest.approx(truth(amd, meter.attempt), rel=2e-3)
    assert meter.attempt.quality.flags == [] and meter.joules() == pytest.approx(gpu.gross_j, rel=1e-2)


def test_a_reset_is_bridged_by_the_power_and_flagged(amd, tmp_path):
    soon = amd.now() + 1.2
    add(amd, Power("const", 500.0), f"reset {soon}")
    with Meter(tmp_path / "a", MeterConfig(**FAST)) as meter:
        time.sleep(max(0.0, soon - amd.now()) + 0.6)
    (gpu,) = gpus(meter.attempt)
    assert gpu.gross_j == pytest.approx(truth(amd, meter.attempt), rel=0.02)
    assert meter.attempt.quality.flags == ["counter_reset"] and meter.joules() < 1.1 * gpu.gross_j


def test_partitions_are_one_device(amd, tmp_path, monkeypatch):
    name = add(amd, Power("const", 600.0), "partitions 8")
    with Meter(tmp_path / "a", MeterConfig(**FAST)) as meter:
        time.sleep(0.4)
    (gpu,) = gpus(meter.attempt)
    assert gpu.device == name and gpu.source == "measured"
    assert gpu.gross_j == pytest.approx(truth(amd, meter.attempt), rel=5e-3)
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1,2")
    with Meter(tmp_path / "b", MeterConfig(**FAST)) as meter:
        time.sleep(0.4)
    (gpu,) = gpus(meter.attempt)
    assert gpu.gross_j == pytest.approx(truth(amd, meter.attempt) / 4, rel=5e-3) and gpu.source == "estimated"
    assert "share_by_rule" in meter.attempt.quality.flags
    assert any("2 of 8 partitions" in note for note in meter.attempt.quality.notes)


UUIDS = ["GPU-00", "GPU-11", "GPU-22", "GPU-33"]


@pytest.mark.parametrize(
    ("env", "seen"),
    [
        ({}, [0, 1, 2, 3]),
        ({"ROCR_VISIBLE_DEVICES": "2,0"}, [2, 0]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-33,1"}, [3, 1]),
        ({"ROCR_VISIBLE_DEVICES": "2,0", "HIP_VISIBLE_DEVICES": "1"}, [0]),
        ({"HIP_VISIBLE_DEVICES": "3"}, [3]),
        ({"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "2"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "2"}, [2]),
        ({"ROCR_VISIBLE_DEVICES": "1,9,2"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "0"}, []),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
    ],
)
def test_visible_devices(env, seen):
    found, reason, _ = resolve_visible_amd(env, UUIDS)
    assert found == seen and (reason is None) == bool(seen)
    assert reason is None or next(iter(env)) in reason


def test_none_visible_is_no_gpu_and_not_0(amd, tmp_path, monkeypatch):
    add(amd, Power("const", 600.0))
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "")
    with Meter(tmp_path / "a", MeterConfig(**FAST)) as meter:
        time.sleep(0.1)
    (gpu,) = gpus(meter.attempt)
    assert gpu.gross_j is None and not gpu.in_total and "ROCR_VISIBLE_DEVICES" in gpu.reason


def test_a_gpu_that_cannot_be_read_makes_the_total_unknown(amd, tmp_path):
    """ROCm is there and its library finds no device that it can start."""
    amd.write()
    with Meter(tmp_path / "a", MeterConfig(**FAST)) as meter:
        time.sleep(0.1)
    (gpu,) = gpus(meter.attempt)
    assert gpu.gross_j is None and gpu.in_total and "AMD SMI" in gpu.reason
    assert total(meter.attempt.components)[0] is None


def test_hardware_names_it(amd):
    name = add(amd, Power("const", 600.0))
    (gpu,) = describe_hardware().gpus
    assert (gpu.uuid, gpu.name, gpu.memory_bytes, gpu.power_limit_w) == (name, "MI300X", 192 << 30, 750.0)


def test_a_graphics_unit_inside_a_cpu_is_no_gpu_of_ours(tmp_path, monkeypatch):
    monkeypatch.delenv("ROCM_PATH", raising=False)
    for node, facts in (("0", "cpu_cores_count 16\nsimd_count 0\n"), ("1", "cpu_cores_count 8\nsimd_count 32\n")):
        (tmp_path / node).mkdir()
        (tmp_path / node / "properties").write_text(facts)
    assert not driver_shows_amd(str(tmp_path))
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "properties").write_text("cpu_cores_count 0\nsimd_count 1216\n")
    assert driver_shows_amd(str(tmp_path))
