"""The stage teacher_logits on a tiny random teacher: against the model itself, and killed and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from stage_context import MODEL, context, write_data

from distill_energy.errors import UserError
from distill_energy.kd.cache import CacheReader
from distill_energy.kd.losses.teacher import collate_teacher
from distill_energy.models.sources import load_model, load_tokenizer
from distill_energy.store.atomic import sha256
from distill_energy.teacher.logits import length_batches, main
from distill_energy.teacher.workers import shared_out

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("stage")
    write_data(root / "data", 50)
    ctx = context(root, {"method": "head_tail", "head": 16, "tail": 16, "batch_tokens": 200, "shard_examples": 20})
    return root, ctx, main(ctx)


def dense_logits(root):
    """(id, label positions' fp32 logits, labels) of every example, one forward each."""
    model = load_model(MODEL, {}, dtype="float32")
    for row in pq.read_table(root / "data" / "train.parquet").to_pylist():
        ids, at = torch.tensor(row["input_ids"]), np.flatnonzero(row["loss_mask"])
        at = torch.from_numpy(at[at > 0])
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0]
        yield row["id"], logits[at - 1], ids[at]


def test_rows_are_the_models_own(cache):
    root, _, _ = cache
    reader = CacheReader(root / "out")
    assert len(reader.shards) == 3
    seen = []
    for example, logits, _ in dense_logits(root):
        seen.append(example)
        rows = collate_teacher(reader.batch([example]))
        assert len(rows) == len(logits)
        for t in (1.0, 2.0, 3.0):
            weights, logp, _ = rows.weights(t)
            exact = torch.log_softmax(logits / t, -1)
            top, _ = exact.topk(16, -1)
            # Half a step of quantisation, at T, on either side of the normaliser.
            torch.testing.assert_close(logp[:, :16], exact.gather(1, rows.ids[:, :16]), atol=0.07 / t, rtol=0)
            torch.testing.assert_close(logp[:, :16], top, atol=0.07 / t, rtol=0)
            torch.testing.assert_close(weights.sum(1), torch.ones(len(rows)))
    assert seen == reader.ids


def test_results_are_the_teachers(cache):
    root, ctx, results = cache
    losses, correct, entropy, labels_all = [], [], [], 0
    for _, logits, labels in dense_logits(root):
        logp = torch.log_softmax(logits, -1)
        losses.append(-logp.gather(1, labels[:, None])[:, 0])
        correct.append(logits.argmax(-1) == labels)
        entropy.append(-(logp.exp() * logp).sum(-1))
        labels_all += len(labels)
    assert results["teacher_loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    assert results["teacher_accuracy"] == pytest.approx(torch.cat(correct).float().mean().item())
    assert results["teacher_entropy"] == pytest.approx(torch.cat(entropy).mean().item(), rel=1e-5)
    assert results["response_tokens"] == labels_all == ctx.meter.tokens["loss"]
    assert results["quantisation_kl_T1"] <= 2e-4
    # Each example is fed up to the predecessor of its last label, once; padding is what the batches add.
    rows = pq.read_table(root / "data" / "train.parquet").to_pylist()
    assert ctx.meter.tokens["processed"] == sum(int(np.flatnonzero(r["loss_mask"])[-1]) for r in rows)
    assert 0 < ctx.meter.tokens["padding"] < 0.25 * ctx.meter.tokens["processed"]


def test_batches_are_bounded_and_complete():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 100, 200).tolist()
    batches = length_batches(lengths, list(range(200)), 256)
    assert sorted(i for b in batches for i in b) == list(range(200))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 256 for b in batches)
    padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    assert padded < 1.1 * sum(lengths)


def run(root: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parents[1] / 'workflow_scripts'}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(HERE / "stage_context.py"), str(root)], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_killed_and_resumed_is_bit_identical(tmp_path):
    for name in ("whole", "killed"):
        write_data(tmp_path / name / "data", 160, longest=60)
    process = run(tmp_path / "whole")
    process.communicate(timeout=250)
    assert process.returncode == 0
    whole = sorted((tmp_path / "whole" / "out").iterdir())
    assert len(whole) == 20

    process = run(tmp_path / "killed")
    while not len(list((tmp_path / "killed" / "out").glob("shard-*.parquet"))) >= 3:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "killed" / "out").glob("shard-*.parquet")}
    assert 3 <= len(kept) < 20
    with pytest.raises(UserError, match=r"shard-0\d+.parquet: shard \d+ of 20 is missing"):
        CacheReader(tmp_path / "killed" / "out")

    process = run(tmp_path / "killed")
    output, _ = process.communicate(timeout=250)
    assert process.returncode == 0
    assert f"{len(kept)} of 20 shards are complete" in output
    for path in whole:
        other = tmp_path / "killed" / "out" / path.name
        assert sha256(other) == sha256(path)
        if path.name in kept:
            assert other.stat().st_mtime_ns == kept[path.name]  # not made again


def contents(root):
    return {path.name: sha256(path) for path in sorted((root / "out").iterdir())}


SHARDS = {"head": 16, "tail": 16, "shard_examples": 8}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A cache of 40 shards by one process."""
    root = tmp_path_factory.mktemp("whole")
    write_data(root / "data", 320, longest=60)
    ctx = context(root, SHARDS)
    return root, ctx, main(ctx)


def test_the_bytes_are_the_same_whatever_the_number_of_processes(whole, tmp_path):
    """Here of three; of two, and of several in turn, below."""
    root, one, results = whole
    write_data(tmp_path / "data", 320, longest=60)
    ctx = context(tmp_path, SHARDS, processes=3)
    assert main(ctx) == results | {"processes": 3} and results["processes"] == 1
    assert len(contents(tmp_path)) == 40 and contents(tmp_path) == contents(root)
    assert ctx.meter.tokens == one.meter.tokens  # counted once, whoever made them
    assert any("shard 40 of 40" in message for message in ctx.messages)


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["child", "stage"])
def test_a_process_is_killed_and_the_rest_resumed(whole, tmp_path, whom):
    """A killed child ends the stage in one line and its siblings; a killed stage ends its children. Complete shards
    stay, and what another number of processes makes of the rest has the same bytes."""
    write_data(tmp_path / "data", 320, longest=60)
    script = str(HERE / "stage_context.py")
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, script, str(tmp_path), "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    while len(list((tmp_path / "out").glob("shard-*.parquet"))) < 3:
        time.sleep(0.01)
        assert process.poll() is None
    workers = children(process.pid)
    assert len(workers) == 2
    os.kill(workers[1] if whom == "child" else process.pid, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    if whom == "child":
        assert "process 2 of 2 ended (SIGKILL); shards that are complete stay" in said.splitlines()[-1]
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "children outlive their stage"
        time.sleep(0.05)
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("shard-*.parquet")}
    assert 3 <= len(kept) < 40
    main(context(tmp_path, SHARDS, processes=2 if whom == "child" else None))
    assert contents(tmp_path) == contents(whole[0])
    for name, at in kept.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == at  # not made again


def test_a_reason_of_a_child_is_the_stage_s(tmp_path):
    write_data(tmp_path / "data", 12)
    folder = str(tmp_path / "model")
    load_model(MODEL, {}).config.save_pretrained(folder)
    load_tokenizer(MODEL, {}).save_pretrained(folder)  # and no weights
    with pytest.raises(UserError, match=r"model .*: cannot be loaded"):
        main(context(tmp_path, {}, {"source": "folder", "path": folder}, processes=2))


def test_how_many_processes():
    gb = 10**9
    assert shared_out(None, 30 * gb, [80 * gb] * 4) == 4  # one a GPU
    assert shared_out(2, 30 * gb, [80 * gb] * 4) == 2
    assert shared_out(8, 30 * gb, [80 * gb] * 4) == 4
    assert shared_out(None, 140 * gb, [80 * gb] * 4) == 1  # one over all
    assert shared_out(None, 30 * gb, [80 * gb, 24 * gb]) == 1  # it does not fit the smaller one
    assert shared_out(None, 30 * gb, [80 * gb, None]) == 1  # nobody knows


def test_another_teachers_shards_are_not_taken(tmp_path):
    write_data(tmp_path / "data", 12)
    main(context(tmp_path, {"method": "topk", "head": 8}))
    ctx = context(tmp_path, {"method": "topk", "head": 8}, {**MODEL, "seed": 4})
    main(ctx)
    assert any("belongs to another cache (provenance differs)" in m for m in ctx.messages)
    assert '"seed": 4' in CacheReader(tmp_path / "out").provenance["model"]


def test_unreadable_data_is_one_line(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"train\.parquet: cannot be read"):
        main(context(tmp_path, {}))


def test_leftovers_of_a_killed_attempt_are_removed(tmp_path):
    write_data(tmp_path / "data", 12)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".shard-00000.parquet.77.tmp").write_bytes(b"half")
    (tmp_path / "out" / "shard-00009.parquet").write_bytes(b"of a longer plan")
    main(context(tmp_path, {"method": "topk", "head": 8}))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["shard-00000.parquet"]


def test_data_of_another_tokenizer_is_refused_before_the_model_is_loaded(tmp_path):
    """A second teacher would score ids that mean other texts to it."""
    write_data(tmp_path / "data", 5)
    path = tmp_path / "data" / "train.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"tokenizer_sha256": "0" * 64}), path)
    ctx = context(tmp_path, {"method": "head_tail", "head": 4, "tail": 4})
    with pytest.raises(UserError, match=r"train\.parquet: made with the tokenizer 000000000000, the teacher's is"):
        main(ctx)
    assert not list((tmp_path / "out").glob("shard*"))
