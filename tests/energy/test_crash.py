"""Kill it anywhere: what was measured is kept, and the record says what happened."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from distill_energy.energy import Meter, MeterConfig, attempts_of, fold_attempts
from distill_energy.energy import journal as journals
from distill_energy.energy.attempts import UNSAVED
from distill_energy.errors import UserError

from .fakes import Power

INTERVAL = 0.1
STAGE = """
import sys, time
from distill_energy.energy import Meter, MeterConfig
with Meter(sys.argv[1], MeterConfig(interval_s=0.1, cpu="off")) as meter:
    print("in", meter._sampler.pid, flush=True)
    with meter.phase("evaluation"):
        time.sleep(0.4)
    end = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end:
        meter.add_tokens("processed", 1)
        time.sleep(0.001)
        if "count" in sys.argv:
            print(meter._board.tokens()["processed"], flush=True)
print("done", meter.attempt.outcome, flush=True)
"""


def start(folder: Path, seconds: float, *more: str) -> tuple[subprocess.Popen, int]:
    """A stage that is inside its window, and its sampler's process id."""
    stage = subprocess.Popen(
        [sys.executable, "-c", STAGE, folder, str(seconds), *more], stdout=subprocess.PIPE, text=True
    )
    return stage, int(stage.stdout.readline().split()[1])


def gone(pid: int, timeout_s: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_sigkill_of_the_stage_loses_at_most_one_interval(gpus, tmp_path):
    gpus.add(Power("const", 300.0))
    stage, sampler = start(tmp_path / "a", 60, "count")
    for _ in range(800):
        counted = stage.stdout.readline()
    killed = time.monotonic()
    stage.kill()
    stage.wait()
    counted = [line for line in [counted, *stage.stdout.readlines()] if line.endswith("\n")][-1]
    assert gone(sampler), "the sampler ends itself"
    (attempt,) = attempts_of(tmp_path / "a")
    assert attempt.outcome == "killed"
    assert attempt.end_mono_s >= killed - INTERVAL, "at most one interval is lost"
    truth = gpus.truth(0, attempt.start_mono_s, killed)
    assert attempt.components[0].gross_j == pytest.approx(truth, abs=300 * INTERVAL)
    assert attempt.tokens.processed >= int(counted), "no token that was counted is lost"
    assert attempt.phases[0].name == "evaluation"
    energy, _, tokens = fold_attempts([attempt])
    assert energy.wasted_gross_j == energy.gross_j
    assert tokens.processed == attempt.tokens.processed


def test_sigterm_of_the_stage_is_preemption(gpus, tmp_path):
    gpus.add(Power("const", 300.0))
    stage, sampler = start(tmp_path / "a", 60)
    time.sleep(0.6)
    stage.terminate()
    assert stage.wait(10) == 143
    assert gone(sampler)
    (attempt,) = attempts_of(tmp_path / "a")
    assert (attempt.outcome, attempt.reason) == ("preempted", "SIGTERM")
    assert attempt.components[0].gross_j == pytest.approx(
        gpus.truth(0, attempt.start_mono_s, attempt.end_mono_s), rel=0.01
    )


def test_sigterm_of_the_whole_step_then_sigkill_is_preemption(gpus, tmp_path):
    """SLURM signals every process of a step. A stage stuck in C cannot answer; the sampler remembers why it died."""
    gpus.add(Power("const", 300.0))
    stage, sampler = start(tmp_path / "a", 60)
    time.sleep(0.5)
    os.kill(sampler, signal.SIGTERM)
    time.sleep(0.5)
    assert not gone(sampler, 0.1), "the sampler does not end at SIGTERM"
    stage.kill()
    stage.wait()
    assert gone(sampler)
    (attempt,) = attempts_of(tmp_path / "a")
    assert attempt.outcome == "preempted"


def test_sigterm_while_the_stage_waits_for_the_sampler(gpus, tmp_path):
    """The signal cuts a command short; its late answer must not be taken for the answer to the last command."""
    gpus.add(Power("const", 300.0))

    def disturb(sampler: int) -> None:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        os.kill(sampler, signal.SIGCONT)

    with pytest.raises(SystemExit), Meter(tmp_path / "a", MeterConfig(INTERVAL, cpu="off")) as meter:
        pid = meter._sampler.pid
        helper = threading.Thread(target=disturb, args=(pid,))
        helper.start()
        os.kill(pid, signal.SIGSTOP)
        with meter.phase("evaluation"):
            time.sleep(10)
    helper.join()
    assert meter.attempt.outcome == "preempted"
    assert meter.attempt.components[0].gross_j == pytest.approx(
        gpus.truth(0, meter.attempt.start_mono_s, meter.attempt.end_mono_s), rel=0.01
    )


def test_handler_is_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with Meter(tmp_path / "a", MeterConfig(INTERVAL, cpu="off", gpu=False)):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigkill_of_the_sampler(gpus, tmp_path):
    """The stage goes on, another sampler takes over, the counter closes the gap, the record says so."""
    gpus.add(Power("const", 300.0))
    with Meter(tmp_path / "a", MeterConfig(0.02, cpu="off")) as meter:
        meter.add_tokens("processed", 5)
        time.sleep(0.5)
        before = meter.joules()
        os.kill(meter._sampler.pid, signal.SIGKILL)
        time.sleep(2.0)
        after = meter.joules()
        with meter.phase("evaluation"):
            time.sleep(0.3)
    attempt = meter.attempt
    assert attempt.outcome == "completed"
    assert {"sampler_died", "sampler_restarted", "gap"} <= set(attempt.quality.flags)
    assert attempt.components[0].gross_j == pytest.approx(
        gpus.truth(0, attempt.start_mono_s, attempt.end_mono_s), rel=0.005
    )
    assert 0.06 < attempt.quality.largest_gap_s < 2.5 and attempt.quality.coverage < 1
    assert after > before, "the running total goes on"
    assert attempt.tokens.processed == 5
    assert attempt.phases[0].gross_j == pytest.approx(90, rel=0.1)


def test_sampler_that_cannot_come_back(gpus, tmp_path, monkeypatch):
    """The stage still ends well; what was lost is unknown and says so."""
    gpus.add(Power("const", 300.0))
    with Meter(tmp_path / "a", MeterConfig(INTERVAL, cpu="off")) as meter:
        time.sleep(0.4)
        monkeypatch.setattr(meter, "_restarts", 10**6)
        os.kill(meter._sampler.pid, signal.SIGKILL)
        time.sleep(0.8)
        meter.add_tokens("loss", 3)
        with meter.phase("evaluation") as phase:
            pass
        assert phase.joules is None
    attempt = meter.attempt
    assert attempt.outcome == "completed" and "sampler_died" in attempt.quality.flags
    part = attempt.components[0]
    assert part.gross_j is None and part.in_total and "before the end" in part.reason
    assert attempt.tokens.loss == 3
    assert attempt.phases[0].name == "evaluation"


def test_children_that_keep_the_pipe_open_do_not_keep_the_attempt_open(gpus, tmp_path):
    """A forked worker inherits our descriptors and outlives the stage: the sampler still sees the stage's end."""
    gpus.add(Power("const", 300.0))
    program = STAGE.replace(
        "    with meter.phase",
        "    import os\n    if os.fork() == 0: time.sleep(20); os._exit(0)\n    with meter.phase",
        1,
    )
    stage = subprocess.Popen([sys.executable, "-c", program, tmp_path / "a", "60"], stdout=subprocess.PIPE, text=True)
    sampler = int(stage.stdout.readline().split()[1])
    time.sleep(0.6)
    children = [
        int(p) for p in Path(f"/proc/{stage.pid}/task/{stage.pid}/children").read_text().split() if int(p) != sampler
    ]
    stage.kill()
    stage.wait()
    try:
        assert gone(sampler)
        (attempt,) = attempts_of(tmp_path / "a")
        assert attempt.outcome == "killed"
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)


def test_stage_that_replaces_itself_is_measured_to_its_end(gpus, tmp_path):
    """``exec`` closes the pipe, and the work goes on in the same process."""
    gpus.add(Power("const", 300.0))
    program = STAGE.replace(
        "    with meter.phase", "    import os; os.execvp('sleep', ['sleep', '1.5'])\n    with meter.phase", 1
    )
    stage = subprocess.Popen([sys.executable, "-c", program, tmp_path / "a", "60"], stdout=subprocess.PIPE, text=True)
    sampler = int(stage.stdout.readline().split()[1])
    stage.wait()
    assert gone(sampler)
    (attempt,) = attempts_of(tmp_path / "a")
    assert attempt.wall_s > 1.4
    assert attempt.components[0].gross_j == pytest.approx(
        gpus.truth(0, attempt.start_mono_s, attempt.end_mono_s), rel=0.01
    )


def test_files_of_the_stage_folder_do_not_shadow_ours(gpus, tmp_path, monkeypatch):
    gpus.add(Power("const", 300.0))
    for name in ("json.py", "select.py", "random.py"):
        (tmp_path / name).write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    with Meter(tmp_path / "a", MeterConfig(INTERVAL, cpu="off")) as meter:
        pass
    assert meter.attempt.outcome == "completed"


def test_codecarbon_that_dies_is_not_taken_for_an_idle_cpu(tmp_path, monkeypatch):
    from distill_energy.energy import attempts as module

    monkeypatch.setattr(module, "ESTIMATOR_LATE_S", 1.5)
    with Meter(tmp_path / "a", MeterConfig(0.2, gpu=False, powercap=str(tmp_path / "none"))) as meter:
        time.sleep(0.5)
        sampler = meter._sampler.pid
        (worker,) = Path(f"/proc/{sampler}/task/{sampler}/children").read_text().split()
        os.kill(int(worker), signal.SIGKILL)
        time.sleep(3)
    cpu = next(c for c in meter.attempt.components if c.component == "cpu")
    assert cpu.gross_j is None and cpu.in_total and "silent" in cpu.reason and "ended early" in cpu.reason


def test_killed_attempts_are_folded_as_wasted(gpus, tmp_path):
    gpus.add(Power("const", 200.0))
    for _ in range(2):
        stage, sampler = start(tmp_path / "a", 60)
        time.sleep(0.6)
        stage.kill()
        stage.wait()
        assert gone(sampler)
    with Meter(tmp_path / "a", MeterConfig(INTERVAL, cpu="off")):
        time.sleep(0.5)
    attempts = attempts_of(tmp_path / "a")
    assert [a.outcome for a in attempts] == ["killed", "killed", "completed"]
    energy, quality, _ = fold_attempts(attempts)
    parts = [a.components[0].gross_j for a in attempts]
    assert energy.gross_j == pytest.approx(sum(parts))
    assert energy.wasted_gross_j == pytest.approx(sum(parts[:2]))
    assert quality.interval_asked_s == INTERVAL


def test_running_attempt_is_not_closed(gpus, tmp_path):
    gpus.add(Power("const", 200.0))
    stage, sampler = start(tmp_path / "a", 60)
    try:
        (attempt,) = attempts_of(tmp_path / "a")
        assert attempt.outcome == "running"
        energy, _, _ = fold_attempts([attempt])
        assert energy.gross_j is None
    finally:
        stage.kill()
        stage.wait()
        gone(sampler)


def test_both_killed_at_once_is_closed_from_the_journal(gpus, tmp_path):
    gpus.add(Power("const", 200.0))
    stage, sampler = start(tmp_path / "a", 60)
    time.sleep(0.5)
    killed = time.monotonic()
    os.kill(sampler, signal.SIGKILL)
    stage.kill()
    stage.wait()
    gone(sampler)
    (attempt,) = attempts_of(tmp_path / "a")
    assert attempt.outcome == "killed" and "without closing" in attempt.reason
    assert attempt.components[0].gross_j == pytest.approx(
        gpus.truth(0, attempt.start_mono_s, killed), abs=200 * INTERVAL * 1.5
    )


def test_torn_last_line(gpus, tmp_path):
    gpus.add(Power("const", 200.0))
    stage, sampler = start(tmp_path / "a", 60)
    time.sleep(0.5)
    os.kill(sampler, signal.SIGKILL)
    stage.kill()
    stage.wait()
    gone(sampler)
    (path,) = (tmp_path / "a").glob(f"*/{journals.NAME}")
    with open(path, "a") as handle:
        handle.write('{"r":"tick","t":12')
    (attempt,) = attempts_of(tmp_path / "a")
    assert attempt.outcome == "killed" and "journal_torn" in attempt.quality.flags
    assert attempt.components[0].gross_j > 0


def test_killed_before_the_window_began_is_no_attempt(tmp_path):
    folder = tmp_path / "a" / "x"
    folder.mkdir(parents=True)
    (folder / journals.NAME).write_text("")
    assert attempts_of(tmp_path / "a") == []
    assert attempts_of(tmp_path / "nothing") == []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True).returncode
    ):
        pytest.skip("a small disk needs the right to mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def attempts_ticks(meter: Meter) -> int:
    """Readings that this process knows of, on disk or not."""
    records, _ = journals.read(meter.folder / journals.NAME)
    records += UNSAVED.get((meter.folder / journals.NAME).resolve(), [])
    return sum(r["r"] == "tick" for r in records)


def fill(folder: Path) -> Path:
    path = folder / "filler"
    with open(path, "wb", buffering=0) as handle:
        try:
            while True:
                handle.write(b"x" * 1024)
        except OSError:
            pass
    return path


@pytest.mark.parametrize("freed", [True, False])
def test_disk_full(gpus, small_disk, freed):
    """Samples wait in memory; they reach the disk when there is room, else the stage that made them still has them."""
    gpus.add(Power("const", 300.0))
    with Meter(small_disk / "a", MeterConfig(0.05, cpu="off")) as meter:
        time.sleep(0.5)
        filler = fill(small_disk)
        time.sleep(1.5)
        written = (meter.folder / journals.NAME).stat().st_size
        time.sleep(0.3)
        assert (meter.folder / journals.NAME).stat().st_size - written < 4096, "the disk must be full"
        if freed:
            filler.unlink()
            time.sleep(0.3)
    attempt = meter.attempt
    assert attempt.outcome == "completed"
    assert attempt.components[0].gross_j == pytest.approx(
        gpus.truth(0, attempt.start_mono_s, attempt.end_mono_s), rel=0.01
    )
    assert "journal_delayed" in attempt.quality.flags
    assert attempt.quality.gaps == 0, "nothing was lost"
    ticks = attempt.wall_s / 0.05
    written = attempts_ticks(meter)
    assert written > 0.8 * ticks, "no reading was lost either"
    assert [a.outcome for a in attempts_of(small_disk / "a")] == ["completed"]


def test_file_size_limit(gpus, tmp_path):
    """As a quota: the journal may not grow beyond a few kB."""
    gpus.add(Power("const", 300.0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    meter = Meter(tmp_path / "a", MeterConfig(0.02, cpu="off"))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
        with meter:
            time.sleep(2.5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    attempt = meter.attempt
    assert (meter.folder / journals.NAME).stat().st_size <= 8192
    assert attempt.outcome == "completed" and "journal_delayed" in attempt.quality.flags
    assert attempt.components[0].gross_j == pytest.approx(
        gpus.truth(0, attempt.start_mono_s, attempt.end_mono_s), rel=0.01
    )


def test_line_that_the_disk_took_half_of_is_finished(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = journals.JournalWriter(tmp_path / "j")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1003, hard))
        for k in range(100):
            writer.write({"r": "tick", "t": k})
        assert (tmp_path / "j").stat().st_size == 1003 and writer.failure
        lines, begun = writer.unwritten()
        assert begun.endswith(lines[0]) and len(begun) > len(lines[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.close()
    records, torn = journals.read(tmp_path / "j")
    assert torn == 0 and [r["t"] for r in records] == list(range(100))


def test_read_only_results(tmp_path):
    """One clear line before anything is spent."""
    folder = tmp_path / "results"
    folder.mkdir()
    if os.geteuid() == 0:
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", folder], capture_output=True
        ).returncode:
            pytest.skip("root writes everywhere, and this root may not mount")
    else:
        folder.chmod(0o500)
    try:
        with (
            pytest.raises(UserError, match=r"cannot be made \((Read-only|Permission)"),
            Meter(folder / "a", MeterConfig(INTERVAL, cpu="off", gpu=False)),
        ):
            pass
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", folder], check=True)


def test_results_that_turn_read_only(gpus, small_disk):
    gpus.add(Power("const", 300.0))
    with Meter(small_disk / "a", MeterConfig(0.05, cpu="off")) as meter:
        time.sleep(0.4)
        turned = subprocess.run(["mount", "-o", "remount,ro", small_disk], capture_output=True).returncode == 0
        time.sleep(0.4)
    if not turned:
        # a writer holds the file open: the kernel refuses, as it would on a real disk without an error
        assert meter.attempt.outcome == "completed"
    assert meter.attempt.components[0].gross_j == pytest.approx(
        gpus.truth(0, meter.attempt.start_mono_s, meter.attempt.end_mono_s), rel=0.01
    )


def test_codecarbon_stage_killed(tmp_path):
    """With an estimate too, a killed stage keeps what it spent."""
    program = (
        "import sys; from distill_energy.energy import Meter, MeterConfig\n"
        "with Meter(sys.argv[1], MeterConfig(0.2, gpu=False, powercap='/nonexistent')) as m:\n"
        "    print('in', flush=True)\n"
        "    while True: pass"
    )
    stage = subprocess.Popen([sys.executable, "-c", program, tmp_path / "a"], stdout=subprocess.PIPE, text=True)
    stage.stdout.readline()
    time.sleep(3)
    stage.kill()
    stage.wait()
    time.sleep(1.5)
    (attempt,) = attempts_of(tmp_path / "a")
    cpu = next(c for c in attempt.components if c.component == "cpu")
    assert attempt.outcome == "killed" and cpu.source == "estimated" and cpu.gross_j > 0


def test_lines_that_a_full_disk_refuses_outlive_both_processes(tmp_path, monkeypatch):
    """The stage and its sampler are gone before there was room: the lines are read from another disk."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "refuge"))
    (tmp_path / "refuge").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    pid = os.fork()
    if pid == 0:
        writer = journals.JournalWriter(tmp_path / "j")
        for k in range(10):
            writer.write({"r": "tick", "t": k})
        real = os.write

        def full(fd, data):  # the journal's disk takes half a line and no more, the refuge's has room
            if fd == writer.fd:
                if writer.begun is None:
                    return real(fd, data[:5])
                raise OSError(28, "No space left on device")
            return real(fd, data)

        os.write = full
        for k in range(10, 40):
            writer.write({"r": "tick", "t": k})
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (soft, hard) == resource.getrlimit(resource.RLIMIT_FSIZE)
    records, torn = journals.read(tmp_path / "j")
    assert [r["t"] for r in records] == list(range(40))
    assert torn == 1  # the half that the disk took


def test_refuge_is_left_when_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    writer = journals.JournalWriter(tmp_path / "j")
    real, room = os.write, [False]

    def write(fd, data):
        if fd == writer.fd and not room[0]:
            raise OSError(28, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    writer.write({"r": "tick", "t": 1})
    assert writer.refuge.exists() and writer.refuge.stat().st_mode & 0o077 == 0
    refuge = writer.refuge
    room[0] = True
    writer.write({"r": "tick", "t": 2})
    writer.close()
    assert not refuge.exists()
    assert [r["t"] for r in journals.read(tmp_path / "j")[0]] == [1, 2]


def test_refuge_is_no_link_of_somebody_else(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for place in journals.refuges(tmp_path / "j"):
        place.symlink_to(victim)
    writer = journals.JournalWriter(tmp_path / "j")
    real = os.write
    monkeypatch.setattr(
        os, "write", lambda fd, data: real(fd, data) if fd != writer.fd else (_ for _ in ()).throw(OSError)
    )
    writer.write({"r": "tick", "t": 1})
    assert victim.read_text() == "precious" and writer.refuge is None


def closed_journal(folder: Path) -> Path:
    with Meter(folder, MeterConfig(0.05, cpu="off")) as meter:
        time.sleep(0.25)
    return meter.folder / journals.NAME


@pytest.mark.parametrize("harm", ["emptied", "zeroed", "garbage", "no opening"])
def test_damaged_journal_of_an_earlier_attempt_is_unknown_and_named(gpus, tmp_path, harm):
    gpus.add(Power("const", 300.0))
    path = closed_journal(tmp_path / "a")
    size = path.stat().st_size
    path.write_bytes(
        {
            "emptied": b"",
            "zeroed": bytes(size),
            "garbage": os.urandom(size),
            "no opening": path.read_bytes().split(b"\n", 1)[1],
        }[harm]
    )
    closed_journal(tmp_path / "a")
    damaged, whole = sorted(attempts_of(tmp_path / "a"), key=lambda a: a.outcome == "completed")
    assert damaged.outcome == "killed" and str(path) in damaged.reason
    assert whole.components[0].gross_j is not None
    energy, quality, _ = fold_attempts([damaged, whole])
    assert energy.gross_j is None and "damaged" in energy.reason
    assert energy.wasted_gross_j is None and "journal_damaged" in quality.flags
    from distill_energy.energy import write_power

    write_power(tmp_path / "a", tmp_path / "power.parquet")


def test_a_flipped_bit_is_never_another_figure(gpus, tmp_path):
    """300 flips anywhere: the energy is what it was to a sample's worth, or unknown; no KeyError at any retry."""
    gpus.add(Power("const", 300.0))
    path = closed_journal(tmp_path / "a")
    data = path.read_bytes()
    (true,) = attempts_of(tmp_path / "a")
    random = np.random.default_rng(0)
    unknown = 0
    for position in random.integers(0, len(data) * 8, 300):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        (attempt,) = attempts_of(tmp_path / "a")
        joules = attempt.components[0].gross_j
        if joules is None:
            unknown += 1
            continue
        assert joules == pytest.approx(true.components[0].gross_j, abs=300.0 * 0.11), position
    assert unknown < 300


def test_journal_of_an_earlier_version_is_read(tmp_path):
    """Lines without checksums."""
    (tmp_path / "j").write_text('{"r":"tick","t":1}\n{"r":"tick","t":2}\n{"r":"ti')
    assert journals.read(tmp_path / "j") == ([{"r": "tick", "t": 1}, {"r": "tick", "t": 2}], 1)
