"""Running out of memory: one line that says what to lower."""

import json
import os
import subprocess
import sys

from .tiny import params, write_rows

SCRIPT = """
import json, resource, sys
from pathlib import Path
import distill_energy.train.loop as loop
from tests.train.tiny import run

step = loop.Loop._step
def limited(self):
    # What is in use now, and 64 MB more: less than a batch of these lengths takes.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
    return step(self)
loop.Loop._step = limited
run(Path(sys.argv[1]), json.loads(sys.argv[2]), {"data": Path(sys.argv[3])})
"""


def test_out_of_memory_is_one_line(tmp_path, repo):
    write_rows(tmp_path / "data" / "train.parquet", 8, seed=1, shortest=30_000, longest=30_001)
    write_rows(tmp_path / "data" / "validation.parquet", 2, seed=2)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), json.dumps(params(batch_size=8)), str(tmp_path / "data")],
        env={**os.environ, "PYTHONPATH": f"{repo}{os.pathsep}{repo / 'workflow_scripts'}", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("distill_energy.errors.UserError: demo-tiny-s0: out of memory with micro-batches of 8"), last
    assert "lower training.micro_batch_size" in last
