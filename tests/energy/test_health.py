"""Temperature, clocks, utilisation, memory and throttling: from the same tick into the record."""

import json
import subprocess
import sys
import time

import pytest

from distill_energy.energy import Meter, MeterConfig
from distill_energy.energy.health import health, judge
from distill_energy.ledger.rows import health_columns
from distill_energy.plan.order import place_in_order
from distill_energy.store import sidecar as schema

from .fakes import Power

FAST = MeterConfig(interval_s=0.05, cpu="off")


def tick(t, *values):
    return {"t": t, "h": {"GPU-a": list(values)}}


def test_median_and_extremes_of_what_was_read():
    ticks = [tick(0, 40, 1000, 0, 10, 0), tick(1, 60, None, 50, 20, 0x4), tick(2, 70, 1980, 100, 90, 0x24)]
    found = health([*ticks, {"t": 3}], "GPU-a")
    assert found.temperature_c == schema.Spread(median=60, min=40, max=70)
    assert found.sm_clock_mhz == schema.Spread(median=1490, min=1000, max=1980)
    assert found.utilisation == schema.Spread(median=0.5, min=0, max=1)
    assert found.memory_used_bytes.max == 90 * 2**20
    assert found.throttle == pytest.approx({"power_cap": 2 / 3, "sw_thermal": 1 / 3})
    assert found.slowed == pytest.approx(1 / 3) and found.readings == 3
    assert health([{"t": 0}], "GPU-a") is None


@pytest.mark.parametrize(
    ("top", "mask", "limit", "flags"),
    [
        (60, 0x4, 90.0, []),  # the power cap of a full load is no fault
        (89, 0, 90.0, ["hot"]),
        (84, 0, None, ["hot"]),
        (80, 0, None, []),
        (60, 0x40, 90.0, ["throttled"]),
        (95, 0x8, 90.0, ["hot", "throttled"]),
    ],
)
def test_hot_and_throttled_are_flagged(top, mask, limit, flags):
    found = health([tick(t, top, 1000, 100, 10, mask) for t in range(10)], "GPU-a")
    assert [flag for flag, _ in judge(found, limit)] == flags


def test_a_stage_that_ran_hot_and_throttled_says_so_by_phase(gpus, tmp_path):
    uuid = gpus.add(Power("const", 300.0), "health 91 1200 100 5000 68 0")
    with Meter(tmp_path, FAST) as meter:
        time.sleep(0.2)
        with meter.phase("load"):
            gpus.gpus[0][3][0] = "health 91 1900 40 9000 0 0"
            gpus.write()
            time.sleep(0.3)
    attempt = schema.Attempt.model_validate_json(meter.attempt.model_dump_json())
    assert {"hot", "throttled"} <= set(attempt.quality.flags)
    assert any("slows down at 90 °C" in note for note in attempt.quality.notes)
    (whole,), (part,) = attempt.health, attempt.phases[0].health
    assert whole.device == uuid and whole.sm_clock_mhz.min == 1200 and whole.sm_clock_mhz.max == 1900
    assert set(whole.throttle) == {"power_cap", "hw_thermal"} and whole.memory_used_bytes.min == 5000 * 2**20
    assert part.sm_clock_mhz.median == 1900 and part.memory_used_bytes.max == 9000 * 2**20
    assert part.readings < whole.readings and 0 < whole.slowed < 1


def test_a_device_that_tells_nothing_has_no_values_and_no_flag(gpus, tmp_path):
    gpus.add(Power("const", 300.0))
    with Meter(tmp_path, FAST) as meter:
        time.sleep(0.2)
    (found,) = meter.attempt.health
    assert found.temperature_c is None and found.throttle is None and found.slowed is None
    assert meter.attempt.quality.flags == []


def test_the_ledger_has_the_extremes(gpus, tmp_path):
    gpus.add(Power("const", 300.0), "health 61 1200 100 5000 68 0")
    with Meter(tmp_path, FAST) as meter:
        time.sleep(0.2)
    row = health_columns(type("Sidecar", (), {"attempts": [meter.attempt]}))
    assert row == {
        "gpu_temperature_c": 61,
        "gpu_sm_clock_mhz": 1200,
        "gpu_utilisation": 1,
        "gpu_memory_bytes": 5000 * 2**20,
        "gpu_slowed": 1,
    }


#: In a process of its own, whose loader sees the fake driver.
COOL = """
import json, sys
from distill_energy import prerun
from distill_energy.energy import Meter, MeterConfig
prerun.COOLDOWN_STEP_S, prerun.COOLDOWN_S = 0.02, float(sys.argv[2])
with Meter(sys.argv[1], MeterConfig(interval_s=0.05, cpu="off")) as meter:
    context = type("Context", (), {"meter": meter, "log": print})
    assert prerun.cool_down(context, None) is None
    found = prerun.cool_down(context, 45.0)
print(json.dumps([found, [phase.name for phase in meter.attempt.phases if phase.gross_j > 0]]))
"""


def cool(folder, patience):
    done = subprocess.run(
        [sys.executable, "-c", COOL, folder, str(patience)], capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_prerun_waits_until_the_gpus_are_cool(gpus, tmp_path):
    gpus.add(Power("const", 300.0), "health 150 1200 0 10 0 -20")
    found, phases = cool(tmp_path / "a", 60)
    assert found["reached"] and found["after_c"] <= 45 < found["before_c"] and found["seconds"] > 0.1
    assert phases == ["cooldown"]


def test_a_host_that_stays_warm_is_measured_as_it_is(gpus, tmp_path):
    gpus.add(Power("const", 300.0), "health 60 1200 0 10 0 0")
    found, _ = cool(tmp_path / "a", 0.1)
    assert found["reached"] is False and found["after_c"] == 60


def test_a_host_without_thermometers_is_not_waited_for(gpus, tmp_path):
    gpus.add(Power("const", 300.0))
    found, phases = cool(tmp_path / "a", 60)
    assert found == {"reached": None, "reason": "no GPU tells its temperature"} and phases == []


def test_the_order_is_random_by_seed_and_stays():
    keys = [f"student_training/{number:012x}" for number in range(50)]

    def order(seed):
        return sorted(keys, key=lambda key: place_in_order(seed, key))

    assert order(1) == order(1) != order(2) and order(1) != keys
    assert {place_in_order(None, key) for key in keys} == {0}
