"""Killed and resumed: the same losses as a run that was left alone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distill_energy.train import checkpoint

from .tiny import context, params, run, trajectory

SCRIPT = """
import json, sys, time
from pathlib import Path
import distill_energy.train.loop as loop
from tests.train.tiny import context, run

folder, data, parameters, pause, metered = sys.argv[1:]
step = loop.Loop._step
def slow(self):
    # Time for the killer; it changes nothing that is computed.
    time.sleep(float(pause))
    row = step(self)
    print("step", row["step"], flush=True)
    return row
loop.Loop._step = slow
arguments = Path(folder), json.loads(parameters), {k: Path(v) for k, v in json.loads(data).items()}
if metered == "1":
    from distill_energy.energy import Meter, MeterConfig
    with Meter(context(*arguments).spec.attempts, MeterConfig(interval_s=0.1)) as meter:
        run(*arguments, meter)
else:
    run(*arguments)
print("done", flush=True)
"""


def start(folder: Path, data: dict, parameters: dict, pause: float, metered: bool = False) -> subprocess.Popen:
    repo = Path(__file__).parents[2]
    path = os.pathsep.join([str(repo), str(repo / "workflow_scripts")])
    arguments = [folder, json.dumps({k: str(v) for k, v in data.items()}), json.dumps(parameters), pause, int(metered)]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def kill_at(process: subprocess.Popen, step: int) -> None:
    """SIGKILL once ``step`` was reported."""
    for line in process.stdout:
        if line.split() == ["step", str(step)]:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_sigkill_and_resume_gives_the_same_losses(tmp_path, data):
    """In the precision with the most state: Adafactor's statistics, and random rounding."""
    recipe = {"precision": "bf16_stochastic", "optimizer": "adafactor", "learning_rate": 3e-2}
    parameters = params(max_steps=24, eval_every=4, checkpoint_every=5, **recipe)
    whole = start(tmp_path / "whole", data, parameters, 0)
    out, _ = whole.communicate(timeout=120)
    assert out.split()[-1] == "done"
    for stop in (8, 17):  # each a few steps after a checkpoint, the second in a resumed attempt
        kill_at(start(tmp_path / "killed", data, parameters, 0.05), stop)
    last = start(tmp_path / "killed", data, parameters, 0)
    out, _ = last.communicate(timeout=120)
    first_redone = int(out.split()[1])
    assert 9 < first_redone <= 18  # from the second attempt's checkpoint (on a slow disk it may come late)
    a = trajectory(context(tmp_path / "whole", parameters, data).out)
    b = trajectory(context(tmp_path / "killed", parameters, data).out)
    assert [r["step"] for r in b] == list(range(1, 25))
    for key in ("train_loss", "eval_loss", "grad_norm", "lr", "tokens", "loss_tokens"):
        assert [r[key] for r in a] == [r[key] for r in b], key


@pytest.mark.slow
def test_a_killed_attempt_counts(tmp_path, data):
    """With the real meter: joules go on from the killed attempt's, tokens done twice are counted twice."""
    from distill_energy.energy import attempts_of, fold_attempts
    from distill_energy.store import sidecar

    parameters = params(max_steps=24, eval_every=12, checkpoint_every=5)
    kill_at(start(tmp_path, data, parameters, 0.1, metered=True), 13)
    ctx = context(tmp_path, parameters, data)
    last = start(tmp_path, data, parameters, 0.1, metered=True)
    out, _ = last.communicate(timeout=120)
    assert last.returncode == 0
    redone = 13 - int(out.split()[1]) + 1
    tries = attempts_of(ctx.spec.attempts)
    assert [a.outcome for a in tries] == ["killed", "completed"]
    rows = trajectory(ctx.out)
    _, _, tokens = fold_attempts(tries)
    assert redone > 0 and tokens.processed > rows[-1]["tokens"]
    first, both = (sidecar.total(a.components)[0] for a in tries)
    if first is None or both is None:
        pytest.skip("this host gives no energy")
    assert first < rows[-1]["joules"] <= (first + both) * 1.02
    kept = [r["joules"] for r in rows if r["joules"] is not None]
    assert kept == sorted(kept)


def test_a_kill_while_writing_leaves_the_former_checkpoint(tmp_path):
    """The writer is stopped before its rename: what is there afterwards is whole, and the debris goes."""
    import torch

    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        checkpoint.save(folder, step, {"identity": {}, "value": torch.full((4,), float(step))})
    assert [step for step, _ in checkpoint.checkpoints(folder)] == [2, 3]
    debris = folder / ".step-000000004.1"
    debris.mkdir()
    (debris / "state-0.pt").write_bytes(b"half")
    assert checkpoint.load_latest(folder, print, {})["value"][0] == 3
    (folder / "step-000000003" / "state-0.pt").write_bytes(b"torn")
    said = []
    assert checkpoint.load_latest(folder, said.append, {})["value"][0] == 2
    assert "step-000000003" in said[0]
    checkpoint.save(folder, 5, {"identity": {}, "value": torch.zeros(1)})
    assert not debris.exists()


def test_no_checkpoint_of_a_short_run(tmp_path, data):
    _, _, ctx = run(tmp_path, params(max_steps=6, checkpoint_every=100), data)
    assert not (ctx.work / "checkpoints").exists()


def test_resuming_after_the_best_step_keeps_its_weights(tmp_path, data):
    """Best weights from before the kill survive in the checkpoint."""
    parameters = params(learning_rate=0.05, max_steps=16, eval_every=2, patience=100, checkpoint_every=3)
    whole, rows, _ = run(tmp_path / "a", parameters, data)
    ctx = context(tmp_path / "b", parameters, data)
    run(tmp_path / "b", parameters, data)
    kept = [step for step, _ in checkpoint.checkpoints(ctx.work / "checkpoints")]
    assert kept[0] >= 3
    before = (ctx.out / "model" / "model.safetensors").read_bytes()
    resumed, again, _ = run(tmp_path / "b", parameters, data)
    assert [r["train_loss"] for r in again] == [r["train_loss"] for r in rows]
    assert resumed["best_step"] == whole["best_step"]
    assert (ctx.out / "model" / "model.safetensors").read_bytes() == before
