"""What real hardware showed: averaged power, slices, mirrored dies, links that lead nowhere, counters that lie."""

import math
import threading
import time

import pytest

from distill_energy.energy import Meter, MeterConfig
from distill_energy.energy.account import estimate_energy, gpu_energy, trapezoid
from distill_energy.energy.sensors import nvml, rapl
from distill_energy.energy.sensors.visible import GpuEntry, resolve_visible_gpus
from distill_energy.store.sidecar import total

from .fakes import FakePowercap, Power, RaplDriver

INTERVAL = 0.5
IDLE, BUSY = 80.0, 690.0


def square(period):
    return lambda t: BUSY if (t % period) < period / 2 else IDLE


#: Load as a function of seconds since the window's start (before it the card idles), and the window's length.
LOADS = {
    "idle": (lambda t: IDLE, 6.0),
    "constant": (lambda t: BUSY if 0 <= t < 12 else IDLE, 12.0),
    "square 0.13 s": (square(0.13), 10.0),
    "square 0.5 s": (square(0.5), 12.0),
    "square 2 s": (square(2.0), 10.0),
    "step inside": (lambda t: BUSY if 3 <= t < 7 else IDLE, 12.0),
}


def readings(load, length, factor=1.0, offset=0.0):
    """A card whose counter moves every 100 ms and whose power is the mean of the last second, sampled by our beat."""
    dt = 0.001
    before = 2.0
    watts = [load(k * dt - before) if k * dt >= before else IDLE for k in range(int((length + before) / dt) + 1)]
    joules = [0.0]
    for value in watts:
        joules.append(joules[-1] + value * dt)

    def energy(t):
        return joules[min(round((t + before) / dt), len(joules) - 1)]

    samples = []
    for k in range(int(length / INTERVAL) + 1):
        t = min(k * INTERVAL + (offset if 0 < k < int(length / INTERVAL) else 0.0), length)
        counter = factor * energy(math.floor(t * 10 + 1e-9) / 10)
        samples.append((100 + t, round(counter * 1000), energy(t) - energy(t - 1.0)))
    return samples, energy(length) - energy(0)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("offset", [0.0, 0.03, 0.07])
def test_a_right_counter_beside_averaged_power_is_not_flagged(load, offset):
    samples, truth = readings(*LOADS[load], offset=offset)
    result = gpu_energy(samples, INTERVAL, limit_w=700)
    assert result.gross_j == pytest.approx(truth, abs=0.2 * BUSY)
    assert result.flags == []
    assert result.error_j <= 0.2 * 2 * BUSY
    assert result.crosscheck_j == pytest.approx(result.gross_j, rel=0.03)


def test_the_plain_integral_lags_as_it_was_seen_to():
    """12 s of matmul: −3.7 % of the counter on the card itself."""
    samples, truth = readings(*LOADS["constant"])
    plain, _ = trapezoid([(t, p) for t, _, p in samples], INTERVAL, 700)
    assert plain / truth - 1 == pytest.approx(-0.037, abs=0.005)


@pytest.mark.parametrize("load", ["idle", "constant", "square 2 s", "step inside"])
@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_a_counter_that_is_really_off_is_flagged(load, factor):
    """In windows long enough that its refresh at the edges does not explain it."""
    shape, length = LOADS[load]
    samples, _ = readings(shape, 3 * length, factor=factor)
    assert set(gpu_energy(samples, INTERVAL, limit_w=700).flags) & {"counter_power_differ", "disputed"}


def test_three_percent_over_a_minute_is_flagged():
    samples, _ = readings(lambda t: BUSY, 60.0, factor=1.03)
    result = gpu_energy(samples, INTERVAL, limit_w=700)
    assert result.flags == ["counter_power_differ"]
    assert result.error_j >= 0.029 * result.gross_j


def test_a_counter_that_stands_still_without_power_is_unknown_and_not_0():
    result = gpu_energy([(t / 2, 0, None) for t in range(20)], INTERVAL)
    assert result.gross_j is None and "does not move" in result.reason


def test_a_counter_that_jumps_is_bridged_by_the_power():
    samples = [(t / 2, round(1000 * 100 * t / 2 + (5e9 if t >= 10 else 0)), 100.0) for t in range(21)]
    result = gpu_energy(samples, INTERVAL, limit_w=700)
    assert "counter_jumped" in result.flags
    assert result.gross_j == pytest.approx(1000, abs=60)


def test_two_slices_of_one_gpu_open_one_counter(monkeypatch):
    inventory = [GpuEntry("GPU-a", migs=("MIG-1", "MIG-2"), handle=0), GpuEntry("GPU-b", handle=1)]
    visible = resolve_visible_gpus({"CUDA_VISIBLE_DEVICES": "MIG-1,MIG-2"}, inventory)
    assert len(visible.gpus) == 2

    class Fake:
        def __init__(self):
            self.inventory, self.lib = inventory, None

    monkeypatch.setattr(nvml, "Nvml", Fake)
    monkeypatch.setattr(nvml, "GpuReader", lambda fake, entry, mig: (entry.uuid, mig))
    assert nvml.open_gpus({"CUDA_VISIBLE_DEVICES": "MIG-1,MIG-2"})[1] == [("GPU-a", "MIG-1, MIG-2")]


def test_mirrored_dies_count_once_and_real_ones_are_summed(tmp_path):
    cap = FakePowercap(tmp_path / "powercap")
    span = 262_143_328_850
    zones = [
        (cap.zone("intel-rapl:0", "package-0-die-0"), 68.0, span, 5_000_000),
        (cap.zone("intel-rapl:1", "package-1"), 50.0, span, 900_000),
    ]
    mirror = tmp_path / "powercap" / "intel-rapl:2"
    cap.zone("intel-rapl:2", "package-0-die-1")
    (mirror / "energy_uj").unlink()
    (mirror / "energy_uj").symlink_to(zones[0][0] / "energy_uj")
    with RaplDriver(zones, period_s=0.001):
        threading.Event().wait(0.05)
        names = [zone.name for zone in rapl.discover(tmp_path / "powercap")]
    assert names == ["package-0-die-0", "package-1"]
    (mirror / "energy_uj").unlink()
    cap.zone("intel-rapl:2", "package-0-die-1", value=123_456)
    with RaplDriver([*zones, (mirror, 60.0, span, 123_456)], period_s=0.001):
        threading.Event().wait(0.05)
        names = [zone.name for zone in rapl.discover(tmp_path / "powercap")]
    assert names == ["package-0-die-0", "package-0-die-1", "package-1"]


def test_links_that_lead_nowhere_are_named_with_the_mount_that_works(tmp_path):
    """A container that binds /sys/class/powercap alone."""
    root, real = tmp_path / "class", tmp_path / "devices"
    root.mkdir()
    (root / "intel-rapl:0").symlink_to(real / "intel-rapl:0")
    assert rapl.discover(root) == []
    said = rapl.problem(root)
    assert str(real) in said and "-v /sys/devices/virtual/powercap/intel-rapl:/sys/class/powercap:ro" in said
    FakePowercap(real).zone("intel-rapl:0", "package-0")
    assert rapl.problem(root) is None and [z.name for z in rapl.discover(root)] == ["package-0"]


def test_the_zones_themselves_in_the_place_of_the_links_are_read(tmp_path):
    """As the mount that the note names shows them: folders with their subzones inside, and files beside them."""
    cap = FakePowercap(tmp_path / "intel-rapl")
    cap.zone("intel-rapl:0", "package-0")
    cap.zone("intel-rapl:0/intel-rapl:0:0", "core")
    cap.zone("intel-rapl:0/intel-rapl:0:1", "dram")
    (tmp_path / "intel-rapl" / "enabled").write_text("1\n")
    zones = rapl.discover(tmp_path / "intel-rapl")
    assert [zone.name for zone in zones] == ["package-0", "package-0/dram"] and not any(z.error for z in zones)


@pytest.mark.parametrize(("name", "holds"), [("NVIDIA-GH200-480GB", True), ("NVIDIA-H200", False)])
def test_no_cpu_estimate_stands_on_top_of_a_module_counter(gpus, tmp_path, name, holds):
    gpus.add(Power("const", 500.0), name=name)
    with Meter(tmp_path / "a", MeterConfig(interval_s=0.05, powercap=str(tmp_path / "none"))) as meter:
        time.sleep(0.2)
    (cpu,) = [c for c in meter.attempt.components if c.component == "cpu"]
    assert cpu.in_total is not holds
    if holds:
        assert cpu.gross_j is None and "module's counter holds the CPU" in cpu.reason
        assert total(meter.attempt.components)[2] == "measured"
    else:
        assert cpu.source == "estimated"


def test_an_impossible_sample_of_an_estimate_does_not_count():
    """31.4 J in one second where the CPU time allows 7.5 a second."""
    samples = [(float(t), 7.0 * t + (31.4 if t >= 6 else 0), None) for t in range(11)]
    checks = [(float(t), 7.2 * t) for t in range(11)]
    result = estimate_energy(samples, "codecarbon_process", checks)
    assert result.gross_j == pytest.approx(72) and "disputed" in result.flags
    assert result.curve_j == sorted(result.curve_j) and result.at(5.0) == pytest.approx(35.0)


def test_a_command_of_less_than_two_seconds_has_the_energy_of_its_cpu_time():
    result = estimate_energy([(0.0, 0.0, None), (1.0, 0.0, None)], "codecarbon_process", [(0.0, 0.0), (1.0, 4.6)])
    assert result.gross_j == pytest.approx(4.6) and "short_processes" in result.flags
