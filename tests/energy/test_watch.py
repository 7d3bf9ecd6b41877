"""``energy watch``, and live watts of ``energy run``, on a pseudo-terminal."""

import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

from distill_energy.energy import Meter, MeterConfig
from distill_energy.energy.watch import DeviceLine, screen

from .fakes import Power

ENERGY = [sys.executable, "-m", "distill_energy", "energy"]


def on_a_terminal(command, seconds=20.0, **streams):
    """(exit code, what a terminal got) of a command whose standard error, and output unless given, are a terminal."""
    master, slave = pty.openpty()
    child = subprocess.Popen(command, stdin=slave, stderr=slave, **({"stdout": slave} | streams))
    os.close(slave)
    said, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        if select.select([master], [], [], 0.2)[0]:
            try:
                chunk = os.read(master, 65536)
            except OSError:  # the other side is closed
                break
            said += chunk
        elif child.poll() is not None:
            break
    os.close(master)
    return child.wait(5), said.decode()


def test_one_screen_of_devices_and_of_the_work_that_runs(gpus, tmp_path):
    gpus.add(Power("const", 300.0))
    gpus.add(Power("const", 120.0))
    attempts = tmp_path / "attempts" / "student_training" / "sft-tiny" / "0123456789ab"
    options = ["watch", tmp_path, "--interval", "0.3", "--seconds", "2", "--cpu", "off", "--g-per-kwh", "500"]
    with Meter(attempts, MeterConfig(interval_s=0.1, cpu="off")) as meter:
        meter.add_tokens("processed", 1000)
        time.sleep(0.5)
        code, said = on_a_terminal([*ENERGY, *map(str, options)])
    assert code == 0
    screens = said.split("\x1b[H\x1b[2J")[1:]
    assert len(screens) >= 3
    last = screens[-1]
    watts = {name: float(value) for name, value in re.findall(r"Fake-H100 (GPU-0000000\d)\S* +([\d.]+)", last)}
    assert watts == {"GPU-00000000": 300.0, "GPU-00000001": 120.0}
    joules = [float(value) for value in re.findall(r"Fake-H100 \S+ +[\d.]+ +([\d.]+)", last)]
    assert joules[0] == pytest.approx(300 * 2, rel=0.35) and joules[0] / joules[1] == pytest.approx(2.5, rel=0.01)
    assert "420.0" in last
    row = re.search(r"student_training/sft-tiny/01234567 +(\d+) +([\d.]+) +([\d.]+) +([\d.]+) +meas", last)
    assert row, last
    spent = float(row[2])
    assert 420 * 1.5 < spent < 420 * 4
    assert float(row[3]) == pytest.approx(spent / 1000, abs=1e-3)
    assert float(row[4]) == pytest.approx(spent / 3.6e6 * 500, abs=1e-3)
    assert all(len(line) <= 100 for line in last.splitlines())


def test_a_pipe_gets_plain_text_and_ended_work_is_not_shown(gpus, tmp_path):
    gpus.add(Power("const", 300.0))
    with Meter(tmp_path / "attempts" / "command" / "x" / "0123", MeterConfig(interval_s=0.1, cpu="off")):
        time.sleep(0.2)
    command = [*ENERGY, "watch", str(tmp_path), "--interval", "0.2", "--seconds", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and "none runs here" in done.stdout and "command/x" not in done.stdout
    assert "no RAPL package" in done.stdout, "the CPU is not passed over in silence"


def test_what_is_unknown_is_a_dash_and_never_0():
    text = screen("now", [DeviceLine("GPU-1", None, None, "lost")], [], {})
    assert re.search(r"GPU-1 +– +–  lost", text) and re.search(r"sum of what is read +–", text)


def test_energy_run_shows_watts_on_a_terminal_alone(gpus, tmp_path):
    gpus.add(Power("const", 300.0))
    command = [*ENERGY, "run", "--cpu", "off", "--interval", "0.1", "--out", str(tmp_path), "--", "sleep", "2.6"]
    code, said = on_a_terminal(command)
    shown = re.findall(r"\r\x1b\[K *([\d.]+) W +([\d.]+) J +([\d.]+) s", said)
    assert code == 0 and len(shown) >= 2, said
    assert float(shown[-1][0]) == pytest.approx(300, rel=0.05)
    assert float(shown[-1][1]) == pytest.approx(300 * float(shown[-1][2]), rel=0.2)
    assert re.search(r"\r\x1b\[Kenergy: [\d.]+ J \(measured\)", said), "the live line is gone when the result comes"
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert "\x1b" not in done.stderr and "\r" not in done.stderr


def test_a_terminals_output_redirected_stays_the_commands(gpus, tmp_path):
    """The live line is on standard error: what the command prints is not mixed with it."""
    gpus.add(Power("const", 300.0))
    work = [sys.executable, "-c", "import time; time.sleep(1.5); print('own')"]
    command = [*ENERGY, "run", "--cpu", "off", "--out", str(tmp_path), "--", *work]
    with open(tmp_path / "out", "wb") as out:
        code, said = on_a_terminal(command, stdout=out)
    assert code == 0 and (tmp_path / "out").read_text() == "own\n" and " W " in said
