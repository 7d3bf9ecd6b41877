"""A stage that was given four GPUs and uses fewer: the others are not its own."""

import json
import subprocess
import sys

import pytest

from .fakes import Power

#: In a process of its own, which sees the fake library from its start.
STAGE = """
import json, os, sys
from distill_energy.energy.exclusive import DeviceLocks
from distill_energy.plan.spec import StageSpec
from distill_energy.stage import execute

processes, uuids = json.loads(sys.argv[1])
own = processes or 1
energy = {"interval_s": 0.1, "jitter": 0.0, "cpu": "off", "pue": 1.0}
energy["grid"] = {"country": None, "region": None, "g_per_kwh": None, "source": None}
labels = {"run": "r", "group": "g", "pipeline": "sft", "student": "s", "dataset": "d", "teacher": "t"}
params = {"training": {"processes": processes}}
spec = StageSpec("student_training", "s", "2" * 12, 1, params, labels=labels, seed=0, energy=energy)
seen = {}

def main(ctx):
    seen["visible"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ.pop("DISTILL_ENERGY_GPUS_HELD")  # as another stage's process has it
    locks = DeviceLocks()
    locks.acquire(uuids[own:], lambda text: sys.exit(text))  # the others are free
    locks.release()
    return {"loss": 1.0}

record = execute(spec, main)
seen["after"] = os.environ.get("CUDA_VISIBLE_DEVICES")
seen["metered"] = [c.device for c in record.attempts[0].components if c.component == "gpu"]
seen["hardware"] = [gpu.uuid for gpu in record.hardware.gpus]
seen["results"] = record.results
print(json.dumps(seen))
"""


@pytest.mark.parametrize(("processes", "own"), [(None, 1), (2, 2), (4, 4)])
def test_a_training_meters_and_locks_what_it_uses(gpus, tmp_path, processes, own):
    uuids = [gpus.add(Power("const", 100.0)) for _ in range(4)]
    command = [sys.executable, "-c", STAGE, json.dumps([processes, uuids])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout)
    assert seen["metered"] == seen["hardware"] == uuids[:own]
    assert seen["after"] is None
    if own == 4:
        assert seen["visible"] is None and "gpus_given" not in seen["results"] and "given" not in done.stderr
    else:
        assert seen["visible"] == ",".join(map(str, range(own)))
        assert f"given 4 GPUs, takes {own}" in done.stderr
        assert (seen["results"]["gpus_given"], seen["results"]["gpus_metered"]) == (4, own)
