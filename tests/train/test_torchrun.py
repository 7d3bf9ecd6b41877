"""A training whose processes torchrun starts: the stage's rank 0 among them, each node metered once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distill_energy.config import load_config
from distill_energy.energy import attempts_of
from distill_energy.errors import UserError
from distill_energy.plan import build_plan
from distill_energy.stage import execute
from distill_energy.store import sidecar
from distill_energy.train.processes import _free_port
from distill_energy.train.torchrun import Place, check_place, spec_of

from .test_processes import needs_two_cores
from .tiny import MODEL, run, trajectory

TRAINING = {"optimizer": "adamw", "learning_rate": 3e-3, "warmup_steps": 2, "max_steps": 6, "precision": "fp32"}


def write_config(folder: Path, **training) -> Path:
    """A configuration with one student that is fine-tuned."""
    config = {
        "energy": {"interval_s": 0.2},
        "prerun": {"idle_seconds": 1, "calibration_seconds": 1},
        "models": {"big": {**MODEL, "layers": 3}, "tiny": MODEL},
        "datasets": {"demo": {"source": "generated", "n_train": 40, "n_validation": 12, "max_length": 64}},
        "teacher": {"model": "big"},
        "students": ["tiny"],
        "seeds": [0],
        "pipelines": {"sft": {"kind": "sft"}},
        "training": {**TRAINING, "eval_every": 3, **training},
        "evaluation": {"benchmarks": {"gold_accuracy": {"kind": "gold_accuracy", "items": 4}}},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def made(config: Path, data: Path):
    """The student's stage, after the stages that it reads: what they do is done, or copied from ``data``."""
    from distill_energy.prerun import main as prerun

    def copy(ctx):
        for path in data.iterdir():
            shutil.copy(path, ctx.out / path.name)

    plan = build_plan(load_config(config))

    def make(consumer):
        for item in consumer.consumes:
            spec = plan.spec(item.stage, item.name, item.version)
            make(spec)
            execute(spec, prerun if spec.stage == "prerun" else copy)

    (spec,) = plan.of("student_training")
    make(spec)
    return spec


def torchrun(*arguments: str) -> subprocess.Popen:
    repo = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repo / "workflow_scripts"), "GLOO_SOCKET_IFNAME": "lo"},
    )


def test_the_stage_of_a_folder(tmp_path):
    config = str(write_config(tmp_path, processes=2))
    (spec,) = build_plan(load_config(config)).of("student_training")
    assert spec_of(config, spec.folder) == spec == spec_of(config, spec.sidecar)
    with pytest.raises(UserError, match="not the folder of a student's training"):
        spec_of(config, "results/evaluation/a/b")
    check_place(Place(0, 0, 2, 2), spec)
    with pytest.raises(UserError, match=r"nodes 1 and training.processes 2 do not agree with torchrun's 4 processes"):
        check_place(Place(0, 0, 4, 2), spec)


def test_without_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="RANK is not set; start this by torchrun"):
        Place.of_environment()


@pytest.mark.slow
@needs_two_cores
@pytest.mark.parametrize("nodes", [1, 2])
def test_trains_as_one_process_does(tmp_path, data, nodes, monkeypatch):
    """Two processes on one node, and on two "nodes" of this host, each with a torchrun of its own."""
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path, **({"processes": 2} if nodes == 1 else {"nodes": 2}))
    spec = made(config, data["data"])
    entry = ["-m", "distill_energy.train.torchrun", config.name, spec.folder]
    launch = ["--nproc-per-node", str(2 // nodes), "--nnodes", str(nodes)]
    if nodes == 1:
        launch = ["--standalone", *launch]
    else:
        launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{_free_port()}"]
    launchers = [torchrun(*launch, *entry) for _ in range(nodes)]
    said = [launcher.communicate(timeout=60)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0] * nodes, "\n".join(said)

    alone = {**spec.params, "training": {**spec.params["training"], "processes": None, "nodes": None}}
    _, one, _ = run(tmp_path / "one", alone, data)
    two = trajectory(Path(spec.folder))
    assert [r["train_loss"] for r in two] == pytest.approx([r["train_loss"] for r in one], rel=1e-3)
    record = sidecar.read(Path(spec.sidecar))
    assert record.results["processes"] == 2
    assert record.tokens.processed == one[-1]["tokens"]
    assert [a.outcome for a in record.attempts] == ["completed"] * nodes
    if nodes == 1:  # again: the artifact is whole, so no process waits for another
        again = torchrun(*launch, *entry)
        assert "whole already" in again.communicate(timeout=60)[0]
        assert again.returncode == 0 and len(attempts_of(spec.attempts)) == 1


@pytest.mark.slow
@needs_two_cores
def test_a_rank_that_fails_ends_all_and_is_heard(tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path, processes=2, batch_size=3)
    spec = made(config, data["data"])
    entry = ["-m", "distill_energy.train.torchrun", config.name, spec.folder]
    launcher = torchrun("--standalone", "--nproc-per-node", "2", *entry)
    said, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 1
    assert "training.batch_size 3 is not a multiple of its 2 processes" in said
    (attempt,) = attempts_of(spec.attempts)
    assert attempt.outcome in ("failed", "preempted")
    assert not Path(spec.sidecar).exists()
