"""Split weights: no process ever has the whole model, and all go on from one checkpoint."""

import json
import os
import subprocess
import sys

import pytest

from distill_energy.models.tiny import tiny_model, tiny_tokenizer
from distill_energy.train import checkpoint, loop
from distill_energy.train.processes import available

from .tiny import params, run

pytestmark = pytest.mark.skipif(available("cpu") < 2, reason="one processor core")

HEAD = """
import json, os, signal, sys
from pathlib import Path
import torch
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
"""

MEMORY = """
import copy
from distill_energy.config.params import TrainingParams
from distill_energy.train import sharded
from distill_energy.train.job import Job, Peers
from distill_energy.train.learner import Learner
from distill_energy.train.worker import NoMeter
from distill_energy.models.sources import load_model

def status(name):
    text = Path("/proc/self/status").read_text()
    return int(text.split(name + ":")[1].split()[0]) * 1024

def learner(params, peers):
    return Learner(Job(TrainingParams.model_validate(params), {}, folder, NoMeter(), print, peers=peers))

given = json.loads(sys.argv[3])
tied = learner(given["small"], Peers(rank, rank, 2))  # what is loaded late is loaded now
lm = tied.student.lm
assert lm.get_output_embeddings().weight is lm.get_input_embeddings().weight and tied.split
plain = load_model(given["small"]["model"], {}, dtype="float32", device="cpu")
pairs = zip(tied.student.parameters(), plain.parameters(), strict=True)
assert all(torch.equal(sharded.full_tensor(w.detach()), p) for w, p in pairs)
before = status("VmRSS")
made = learner(given["large"], Peers(rank, rank, 2))
grown = status("VmHWM") - before
weights = list(made.student.parameters())
own = sum(sharded.to_local(w).numel() * w.element_size() for w in weights)
whole = sum(w.numel() * w.element_size() for w in weights)
there = all(not t.is_meta for t in (*made.student.parameters(), *made.student.buffers()))
plain = load_model(given["large"]["model"], {}, dtype="float32", device="cpu")
same = all(torch.equal(sharded.full_tensor(w.detach()), p) for w, p in zip(weights, plain.parameters(), strict=True))
buffers = zip(made.student.lm.buffers(), plain.buffers(), strict=True)
print(json.dumps({"grown": grown, "own": own, "whole": whole, "there": there,
                  "same": same and all(torch.equal(a, b) for a, b in buffers)}))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def ranks(script: str, folder, *arguments: str) -> list[subprocess.CompletedProcess]:
    """What two processes that are one group printed."""
    command = [sys.executable, "-c", HEAD + script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed is given back at once
    started = [
        subprocess.Popen(
            [*command, str(rank), str(folder), *arguments], stdout=-1, stderr=-1, text=True, env=environment
        )
        for rank in (0, 1)
    ]
    done = []
    for process in started:
        out, error = process.communicate(timeout=200)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, error))
    return done


def test_no_process_holds_the_whole_model(tmp_path):
    large = {"source": "random", "layers": 24, "hidden": 512, "heads": 8, "vocabulary": 384, "seed": 1}
    changes = {"processes": 2, "sharding": "full"}
    small = tiny_model({"layers": 2, "hidden": 64, "heads": 2, "vocabulary": 384})
    small.config.tie_word_embeddings = True
    small.tie_weights()
    small.save_pretrained(tmp_path / "tied")
    tiny_tokenizer(384).save_pretrained(tmp_path / "tied")
    tied = {"source": "folder", "path": str(tmp_path / "tied")}
    given = {name: params(model=model, **changes) for name, model in (("large", large), ("small", tied))}
    done = ranks(MEMORY, tmp_path, json.dumps(given))
    found = [json.loads(d.stdout) for d in done if d.returncode == 0]
    assert len(found) == 2, done[0].stderr[-1500:] + done[1].stderr[-1500:]
    for told in found:
        assert told["there"] and told["same"]  # every weight and buffer is rank 0's
        assert told["own"] < 0.51 * told["whole"]
    assert found[1]["whole"] > 150e6
    # Rank 0's host has the weights that it sends; the other never has more than its part, a layer and what is small.
    assert found[1]["grown"] < 0.8 * found[1]["whole"], found[1]


KILLED = """
from distill_energy.train import checkpoint

for step in (1, 2):
    def barrier():
        torch.distributed.barrier()
        if step == 2 and rank == 1:  # before its own file is written
            os.kill(os.getpid(), signal.SIGKILL)
    state = {"identity": {}, "state": {"step": step}, "weights": torch.full((3,), float(step))}
    try:
        checkpoint.save(folder / "checkpoints", step, state, rank, barrier)
    except RuntimeError:
        print("the other is gone")
        os._exit(0)
"""


def test_a_rank_killed_between_the_files_of_a_checkpoint(tmp_path):
    """The one before it is everybody's."""
    first, second = ranks(KILLED, tmp_path)
    assert second.returncode == -9 and "the other is gone" in first.stdout, first.stderr[-1500:]
    folder = tmp_path / "checkpoints"
    assert [path.name for path in folder.glob(".step-*")] == [".step-000000002"]
    steps = [checkpoint.load_latest(folder, pytest.fail, {}, part)["state"]["step"] for part in (0, 1)]
    assert steps == [1, 1]


@pytest.mark.slow
def test_all_go_on_from_a_checkpoint_that_is_whole_for_all(tmp_path, data, capfd, monkeypatch):
    """The newest cannot be read by one process alone: both take the one before, and it is said."""
    monkeypatch.setattr(loop, "CHECKPOINT_SPACING", 0)
    changes = {"processes": 2, "sharding": "full", "checkpoint_every": 2, "max_steps": 7, "eval_every": 7}
    _, rows, ctx = run(tmp_path, params(**changes), data)
    newest = sorted((ctx.work / "checkpoints").glob("step-*"))[-1]
    part = newest / "state-1.pt"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    capfd.readouterr()
    _, again, _ = run(tmp_path, params(**changes), data)
    said = capfd.readouterr().err
    step = int(newest.name[5:])
    assert f"step {step} is not whole in every process; all go on from an earlier one" in said
    assert f"resumed after step {step - 2}" in said
    assert [r["train_loss"] for r in again] == [r["train_loss"] for r in rows]
