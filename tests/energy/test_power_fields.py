"""Power by the driver's field values, and the share of a MIG slice, on fake cards."""

import json
import math
import random
import time

import pytest

from distill_energy.energy import Meter, MeterConfig, measure_idle
from distill_energy.energy.account import gpu_energy
from distill_energy.energy.sampler import INSTANT_JITTER
from distill_energy.store.sidecar import total

from .fakes import Power
from .test_real_hardware import BUSY, IDLE, INTERVAL, LOADS

FAST = dict(interval_s=0.05, cpu="off")


def instantaneous(load, length, seed, factor=1.0):
    """A card whose counter moves every 100 ms and whose power is that of the moment, read at a beat moved at random."""
    draw, dt = random.Random(seed), 0.001
    joules = [0.0]
    for k in range(int(length / dt) + 1):
        joules.append(joules[-1] + load(k * dt) * dt)
    times = [0.0]
    times += [
        k * INTERVAL + INSTANT_JITTER * (draw.random() - 0.5) * INTERVAL for k in range(1, int(length / INTERVAL))
    ]
    times.append(length)
    return [
        (t, round(1000 * factor * joules[round(math.floor(t * 10 + 1e-9) / 10 / dt)]), load(min(t, length - dt)))
        for t in times
    ]


@pytest.mark.parametrize("load", LOADS)
def test_a_right_counter_beside_instantaneous_power_is_not_flagged(load):
    shape, length = LOADS[load]
    flagged = [
        seed
        for seed in range(100)
        if gpu_energy(instantaneous(shape, length, seed), INTERVAL, limit_w=700, power_kind="instant").flags
    ]
    assert len(flagged) <= 3, flagged  # three standard errors


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_three_percent_beside_instantaneous_power_are_flagged(factor):
    samples = instantaneous(lambda t: BUSY, 60.0, 1, factor)
    result = gpu_energy(samples, INTERVAL, limit_w=700, power_kind="instant")
    assert result.flags == ["counter_power_differ"] and result.crosscheck_method == "nvml_field_instant"


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_three_percent_beside_averaged_power_are_flagged(factor):
    samples = [(t / 2, round(factor * 1000 * BUSY * t / 2), BUSY) for t in range(121)]
    result = gpu_energy(samples, INTERVAL, limit_w=700, power_kind="average")
    assert result.flags == ["counter_power_differ"] and result.crosscheck_method == "nvml_field_average"


def test_the_window_is_the_one_that_the_driver_names():
    """A step seen through a lag of a second, which the name says is none: the name counts."""
    samples = [(t / 2, round(1000 * BUSY * t / 2), BUSY * min(1.0, t / 2)) for t in range(9)]
    assert gpu_energy(samples, INTERVAL, power_kind="average").flags == []
    assert gpu_energy(samples, INTERVAL, power_kind="average").crosscheck_method == "nvml_field_average"
    assert gpu_energy(samples, INTERVAL, power_kind="instant").crosscheck_j < 0.95 * samples[-1][1] / 1000


@pytest.mark.parametrize(
    ("fields", "method"),
    [
        (["averaged", "fields both"], "nvml_field_average"),
        (["fields instant"], "nvml_field_instant"),
        (["averaged"], "nvml_power_average"),
    ],
)
def test_which_power_was_used_is_recorded_through_the_driver(gpus, tmp_path, fields, method):
    gpus.add(Power("square", IDLE, BUSY, 1.6), "refresh 0.1", *fields)
    with Meter(tmp_path / "a", MeterConfig(interval_s=0.1, cpu="off")) as meter:
        time.sleep(3.0)
    (gpu,) = [c for c in meter.attempt.components if c.component == "gpu"]
    assert gpu.crosscheck_method == method
    truth = gpus.truth(0, meter.attempt.start_mono_s, meter.attempt.end_mono_s)
    assert gpu.gross_j == pytest.approx(truth, abs=0.2 * BUSY)
    assert not {"counter_power_differ", "disputed"} & set(meter.attempt.quality.flags)


def test_a_counter_that_is_off_is_flagged_through_the_driver(gpus, tmp_path):
    gpus.add(Power("const", BUSY), "scale 1.08", "averaged", "fields both")
    with Meter(tmp_path / "a", MeterConfig(**FAST)) as meter:
        time.sleep(5.0)
    assert "counter_power_differ" in meter.attempt.quality.flags


def test_two_slices_are_one_device_and_their_joules_the_rules_share(gpus, tmp_path, monkeypatch):
    uuid = gpus.add(Power("const", 700.0), "sms 112", "mig MIG-a 48", "mig MIG-b 32", "mig MIG-c 32")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")
    with Meter(tmp_path / "a", MeterConfig(**FAST)) as meter, meter.phase("inside") as phase:
        time.sleep(0.5)
    (gpu,) = [c for c in meter.attempt.components if c.component == "gpu"]
    truth = gpus.truth(0, meter.attempt.start_mono_s, meter.attempt.end_mono_s)
    assert gpu.device == uuid and gpu.source == "estimated"
    assert gpu.gross_j == pytest.approx(truth * 80 / 112, rel=1e-3)
    assert meter.joules() == pytest.approx(gpu.gross_j) and phase.source == "estimated"
    assert meter.attempt.phases[0].gross_j == pytest.approx(phase.joules, rel=0.02)
    assert {"shared_device", "share_by_rule"} <= set(meter.attempt.quality.flags)
    assert "80 of 112 multiprocessors (MIG-a, MIG-b)" in json.dumps(meter.attempt.quality.notes)


def test_slices_measured_side_by_side_never_add_up_to_more_than_the_gpu(gpus, tmp_path, monkeypatch):
    """Nor does one wait for the other: each slice has a lock of its own."""
    gpus.add(Power("const", 700.0), "sms 112", "mig MIG-a 48", "mig MIG-b 64")
    parts = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a")
    with Meter(tmp_path / "a", MeterConfig(**FAST)) as one:
        monkeypatch.delenv("DISTILL_ENERGY_GPUS_HELD", raising=False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-b")
        with Meter(tmp_path / "b", MeterConfig(**FAST)) as other:
            time.sleep(0.4)
    for meter in (one, other):
        assert meter.waited_s < 0.2
        parts.append(total(meter.attempt.components)[0] / meter.attempt.wall_s)
    assert parts == [pytest.approx(300, rel=0.02), pytest.approx(400, rel=0.02)]


def test_a_slice_whose_share_is_unknown_is_null_and_says_so(gpus, tmp_path, monkeypatch):
    gpus.add(Power("const", 700.0), "mig MIG-a", "mig MIG-b")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a")
    with Meter(tmp_path / "a", MeterConfig(**FAST)) as meter:
        time.sleep(0.2)
        assert meter.joules() is None
    (gpu,) = [c for c in meter.attempt.components if c.component == "gpu"]
    assert gpu.gross_j is None and "share of the GPU" in gpu.reason and "MIG-a" in gpu.reason
    assert total(meter.attempt.components)[0] is None


def test_a_slice_is_net_of_its_own_idle_power_and_of_no_other_slices(gpus, tmp_path, monkeypatch):
    gpus.add(Power("const", 112.0), "sms 112", "mig MIG-a 28", "mig MIG-b 84")
    config = MeterConfig(**FAST)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a")
    idle = measure_idle(config, 0.5)
    with Meter(tmp_path / "a", config, idle=idle) as meter:
        time.sleep(0.4)
    (gpu,) = [c for c in meter.attempt.components if c.component == "gpu"]
    assert gpu.idle_j == pytest.approx(28 * meter.attempt.wall_s, rel=0.02)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-b")
    with Meter(tmp_path / "b", config, idle=idle) as meter:
        time.sleep(0.2)
    (gpu,) = [c for c in meter.attempt.components if c.component == "gpu"]
    assert gpu.idle_j is None and "no value" in gpu.idle_reason
