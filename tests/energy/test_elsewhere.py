"""A system without /proc, /sys, memfd, pidfd and sched_getaffinity, as macOS: they are hidden from our own code, in
every process that is started. The machine below is still Linux: CodeCarbon and psutil see it as it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill_energy.store import sidecar as schema

HIDE = """
import builtins, io, os, sys
for name in ("memfd_create", "pidfd_open", "sched_getaffinity", "sched_setaffinity"):
    if hasattr(os, name):
        delattr(os, name)
def ours():
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith(("psutil", "codecarbon", "cpuinfo")):
            return False
        main = name == "__main__" and "distill_energy" in str(getattr(frame.f_globals.get("__spec__"), "name", ""))
        if name.startswith("distill_energy") or main:
            return True
        frame = frame.f_back
    return False
def hidden(real):
    def call(path=".", *rest, **named):
        place = path if isinstance(path, str) else os.fspath(path) if isinstance(path, os.PathLike) else ""
        if isinstance(place, str) and place.startswith(("/proc", "/sys")) and ours():
            raise FileNotFoundError(2, "No such file or directory", place)
        return real(path, *rest, **named)
    return call
builtins.open = io.open = hidden(builtins.open)
for name in ("listdir", "scandir", "readlink", "stat", "lstat", "open"):
    setattr(os, name, hidden(getattr(os, name)))
BLOCKED = os.environ.get("BLOCK_MODULE")
class Block:
    def find_spec(self, name, *rest):
        if name == BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
if BLOCKED:
    sys.meta_path.insert(0, Block())
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(HIDE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'hide'}{os.pathsep}{os.environ['PYTHONPATH']}")
    return tmp_path / "results"


def run(*words, **named):
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=100, **named)


def test_it_is_hidden(elsewhere):
    code = "import os, distill_energy.energy.identity as i; print(i.boot_id(), hasattr(os, 'memfd_create'))"
    assert run("-c", code).stdout.split() == ["None", "False"]


def test_a_command_is_measured_with_the_estimate(elsewhere):
    work = "import time; end = time.time() + 2.5\nwhile time.time() < end: pass"
    done = run("-m", "distill_energy", "energy", "run", "--out", elsewhere, "--", sys.executable, "-c", work)
    assert done.returncode == 0 and "J (estimated)" in done.stderr, done.stderr
    (path,) = elsewhere.glob("command/*/*/energy.json")
    record = schema.read(path)
    (cpu,) = [c for c in record.energy.components if c.component == "cpu"]
    assert cpu.source == "estimated" and cpu.gross_j > 1
    assert record.hardware.cores == os.cpu_count() and record.attempts[0].outcome == "completed"


def test_the_entry_counts_tokens_and_phases(elsewhere):
    code = f"""
import time
from distill_energy import measure
with measure("part", {str(elsewhere)!r}) as m:
    with m.phase("inside"):
        end = time.time() + 1.5
        while time.time() < end: pass
    m.add_tokens("processed", 10)
print(m.energy_j > 0, m.source, m.record.j_per_token.value > 0)
"""
    done = run("-c", code)
    assert done.stdout.split() == ["True", "estimated", "True"], done.stderr


def test_work_that_runs_is_seen_to_run(elsewhere):
    """Without /proc a process is asked for by a signal that does nothing."""
    code = f"""
import time
from distill_energy.energy import Meter, MeterConfig, attempts_of
with Meter({str(elsewhere)!r}, MeterConfig(interval_s=0.1, cpu="off")):
    time.sleep(0.5)
    print([a.outcome for a in attempts_of({str(elsewhere)!r})])
print([a.outcome for a in attempts_of({str(elsewhere)!r})])
"""
    done = run("-c", code)
    assert done.stdout.splitlines() == ["['running']", "['completed']"], done.stderr


def test_without_codecarbon_one_line_says_what_is_missing(elsewhere, monkeypatch):
    monkeypatch.setenv("BLOCK_MODULE", "codecarbon")
    done = run("-m", "distill_energy", "energy", "run", "--out", elsewhere, "--", sys.executable, "-c", "pass")
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1 and "unknown" in done.stderr and "No module named 'codecarbon'" in done.stderr
    (path,) = elsewhere.glob("command/*/*/energy.json")
    assert json.loads(path.read_text())["energy"]["gross_j"] is None
