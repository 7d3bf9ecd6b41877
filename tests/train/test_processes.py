"""Data-parallel training on two processes of this host."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from distill_energy.errors import UserError
from distill_energy.train.processes import available, check_processes

from .test_resume import start
from .tiny import CountingMeter, context, params, run

needs_two_cores = pytest.mark.skipif(available("cpu") < 2, reason="one processor core")


@pytest.mark.slow
@needs_two_cores
@pytest.mark.parametrize("changes", [{"micro_batch_size": 1}, {"precision": "bf16_autocast"}])
def test_two_processes_train_as_one_does(tmp_path, data, changes):
    one_meter, two_meter = CountingMeter(), CountingMeter()
    alone, one, _ = run(tmp_path / "one", params(max_steps=8, **changes), data, one_meter)
    both, two, ctx = run(tmp_path / "two", params(max_steps=8, processes=2, **changes), data, two_meter)
    assert both["processes"] == 2
    tolerance = 2e-2 if "precision" in changes else 1e-3
    for key in ("train_loss", "eval_loss", "grad_norm"):
        a = [r[key] for r in one if r[key] is not None]
        b = [r[key] for r in two if r[key] is not None]
        assert a == pytest.approx(b, rel=tolerance), key
    # Rank 0 counts the tokens of both processes once.
    for kind in ("processed", "loss"):
        assert two_meter.tokens[kind] == one_meter.tokens[kind]
    assert alone["best_step"] == both["best_step"]
    assert not list(ctx.work.glob("rendezvous-*"))


@pytest.mark.slow
@needs_two_cores
@pytest.mark.parametrize(("optimizer", "precision"), [("adafactor", "bf16_autocast"), ("adamw", "bf16_stochastic")])
def test_split_weights_train_as_whole_ones(tmp_path, data, optimizer, precision):
    changes = {"optimizer": optimizer, "precision": precision, "micro_batch_size": 1, "max_steps": 6, "eval_every": 3}
    changes["learning_rate"] = 3e-2 if optimizer == "adafactor" else 3e-3
    _, one, ctx = run(tmp_path / "one", params(**changes), data)
    parameters = params(processes=2, sharding="full", checkpoint_every=2, **changes)
    both, two, split = run(tmp_path / "two", parameters, data)
    tolerance = 1e-3 if precision == "fp32" else 3e-2
    for key in ("train_loss", "eval_loss"):
        a = [r[key] for r in one if r[key] is not None]
        b = [r[key] for r in two if r[key] is not None]
        assert a == pytest.approx(b, rel=tolerance), key
    a, b = (load_file(c.out / "model" / "model.safetensors") for c in (ctx, split))
    assert a.keys() == b.keys()
    assert all(a[k].shape == b[k].shape and a[k].dtype == b[k].dtype for k in a)
    # The same again from its last checkpoint, which every process has a part of.
    resumed, again, _ = run(tmp_path / "two", parameters, data)
    assert [r["train_loss"] for r in again] == [r["train_loss"] for r in two]
    assert resumed["eval_loss"] == both["eval_loss"]


def peers_of(pid: int) -> list[int]:
    """Children of a process that train beside it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and b"train.worker" in (path.parent / "cmdline").read_bytes():
                found.append(int(path.parent.name))
    return found


def started(tmp_path, data):
    """A training on two processes, some steps in; its peers."""
    process = start(tmp_path, data, params(processes=2, max_steps=500, eval_every=500), 0.2)
    for line in process.stdout:
        if line.split() == ["step", "3"]:
            break
    return process, peers_of(process.pid)


@pytest.mark.slow
@needs_two_cores
def test_a_peer_that_dies_ends_the_training(tmp_path, data):
    process, (peer,) = started(tmp_path, data)
    os.kill(peer, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 1


@pytest.mark.slow
@needs_two_cores
def test_peers_end_with_a_killed_training(tmp_path, data):
    process, (peer,) = started(tmp_path, data)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{peer}").exists():
        assert time.monotonic() < deadline, "the peer lives on"
        time.sleep(0.2)


@pytest.mark.slow
@needs_two_cores
def test_a_batch_that_cannot_be_shared(tmp_path, data):
    with pytest.raises(UserError, match="is not a multiple of its 2 processes"):
        run(tmp_path, params(processes=2, batch_size=3), data)


def test_more_processes_than_cores(tmp_path, data):
    with pytest.raises(UserError, match=rf"training.processes is 4096, this host has {available('cpu')}"):
        run(tmp_path, params(processes=4096, batch_size=4096), data)


def test_more_processes_than_gpus(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"training\.processes is 2, this host has 1 GPUs"):
        check_processes(2, "cuda")
    assert os.environ.get("WORLD_SIZE") is None


SRUN = """#!/bin/sh
# Stands in for SLURM's srun on one host: the options go, the command runs as task 0, standard input reaches it.
while [ "${1#--}" != "$1" ]; do shift; done
SLURM_PROCID=0 exec "$@"
"""


@pytest.mark.slow
@needs_two_cores
def test_two_nodes_train_as_one_and_each_is_metered_once(tmp_path, data, monkeypatch):
    """Two "nodes" of one process each on this host; the launcher is a stand-in, all else is what runs on a cluster."""
    from distill_energy.energy import Meter, MeterConfig, attempts_of

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text(SRUN)
    (tmp_path / "bin" / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    _, one, _ = run(tmp_path / "one", params(max_steps=6), data)
    parameters = params(max_steps=6, nodes=2)
    spec = context(tmp_path / "two", parameters, data).spec
    with Meter(spec.attempts, MeterConfig(interval_s=0.2)) as meter:
        both, two, _ = run(tmp_path / "two", parameters, data, meter)
    assert both["processes"] == 2
    assert [r["train_loss"] for r in one] == pytest.approx([r["train_loss"] for r in two], rel=1e-3)
    tries = attempts_of(spec.attempts)
    assert [a.outcome for a in tries] == ["completed", "completed"]
    assert sorted(a.tokens.processed or 0 for a in tries) == [0, two[-1]["tokens"]]


def test_more_nodes_than_the_job_has(tmp_path, data, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    with pytest.raises(UserError, match=r"training\.nodes is 2, this job has 1"):
        run(tmp_path, params(nodes=2), data)
