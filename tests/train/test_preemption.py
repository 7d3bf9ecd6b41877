"""SIGTERM, as SLURM sends it before it takes a node: a checkpoint, a closed attempt, and nothing lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill_energy.train.preemption import Preemption

from .test_processes import needs_two_cores, peers_of
from .test_resume import start
from .tiny import context, params, run, trajectory

EXACT = ("step", "train_loss", "eval_loss", "grad_norm", "lr", "tokens", "loss_tokens")


def terminate_at(process: subprocess.Popen, step: int, whom: int | None = None) -> str:
    """SIGTERM once ``step`` was reported; returns the rest of what was said."""
    for line in process.stdout:
        if line.split() == ["step", str(step)]:
            break
    os.kill(whom or process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    return said


@pytest.mark.slow
def test_the_next_attempt_goes_on_where_this_one_was_told_to_end(tmp_path, data):
    """With the real meter. No checkpoint is due for long: the one there is was written for the signal."""
    from distill_energy.energy import attempts_of, fold_attempts

    parameters = params(max_steps=20, eval_every=5, checkpoint_every=1000)
    process = start(tmp_path / "ended", data, parameters, 0.1, metered=True)
    terminate_at(process, 8)
    assert process.returncode == 143
    ctx = context(tmp_path / "ended", parameters, data)
    (attempt,) = attempts_of(ctx.spec.attempts)
    assert (attempt.outcome, attempt.reason) == ("preempted", "SIGTERM")
    (saved,) = (path.name for path in (ctx.work / "checkpoints").iterdir())
    assert saved in ("step-000000008", "step-000000009")

    last = start(tmp_path / "ended", data, parameters, 0, metered=True)
    said, _ = last.communicate(timeout=60)
    assert last.returncode == 0
    assert said.splitlines()[0] == f"step {int(saved[-9:]) + 1}"
    _, whole, _ = run(tmp_path / "whole", parameters, data)
    rows = trajectory(ctx.out)
    assert [[row[key] for key in EXACT] for row in rows] == [[row[key] for key in EXACT] for row in whole]
    # No step was done twice, so the meters counted each token once.
    _, _, tokens = fold_attempts(attempts_of(ctx.spec.attempts))
    assert tokens.processed == whole[-1]["tokens"]


@pytest.mark.slow
@needs_two_cores
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_end_together(tmp_path, data, sharding):
    """The signal reaches one of them only, and not the leading one."""
    parameters = params(max_steps=14, eval_every=7, checkpoint_every=1000, processes=2, sharding=sharding)
    process = start(tmp_path / "ended", data, parameters, 0.1)
    for line in process.stdout:
        if line.split() == ["step", "2"]:
            break
    (peer,) = peers_of(process.pid)
    terminate_at(process, 4, peer)
    assert process.returncode == -signal.SIGTERM
    deadline = time.monotonic() + 10
    while Path(f"/proc/{peer}").exists():
        assert time.monotonic() < deadline, "the peer lives on"
        time.sleep(0.1)
    last = start(tmp_path / "ended", data, parameters, 0)
    said, _ = last.communicate(timeout=90)
    assert int(said.split()[1]) in (5, 6, 7)
    _, whole, _ = run(tmp_path / "whole", parameters, data)
    rows = trajectory(context(tmp_path / "ended", parameters, data).out)
    assert [[row[key] for key in EXACT] for row in rows] == [[row[key] for key in EXACT] for row in whole]


SCRIPT = """
import signal, sys, time
from distill_energy.train.preemption import Preemption

def end(*_):
    raise SystemExit(143)
if sys.argv[1] == "handled":
    signal.signal(signal.SIGTERM, end)
with Preemption(grace_s=float(sys.argv[2])) as preemption:
    print("ready", flush=True)
    time.sleep(30)  # a step that takes too long
"""


@pytest.mark.parametrize(("former", "status"), [("handled", 143), ("default", -signal.SIGTERM)])
@pytest.mark.parametrize("signals", [1, 2])
def test_a_step_that_takes_too_long_is_not_waited_for(repo, former, status, signals):
    """After the grace time, or at a second signal."""
    grace = "0.5" if signals == 1 else "60"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, former, grace],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(repo / "workflow_scripts")},
    )
    process.stdout.readline()
    begin = time.monotonic()
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    assert process.wait(20) == status
    assert time.monotonic() - begin < 10
    process.stdout.close()


def test_the_former_handler_comes_back():
    def own(*_):
        seen.append("own")

    seen: list[str] = []
    before = signal.signal(signal.SIGTERM, own)
    try:
        with Preemption() as preemption:
            signal.raise_signal(signal.SIGTERM)
            assert preemption.asked and not seen
            preemption.now()
            assert seen == ["own"]
        assert signal.getsignal(signal.SIGTERM) is own
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with Preemption() as preemption:
            signal.raise_signal(signal.SIGTERM)
            assert not preemption.asked
    finally:
        signal.signal(signal.SIGTERM, before)
