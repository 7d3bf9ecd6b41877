"""Shards on disk: order, damage, prefetching, bounded row groups, the merged certificate."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from distill_energy.errors import UserError
from distill_energy.kd.cache import CacheReader, CacheSpec, CacheWriter, encode_rows, pack, plan_shards, uniforms
from distill_energy.kd.cache import writer as writer_module

SPEC = CacheSpec(vocab_size=2000, head=16, tail=16)
TOKENS = [5, 0, 17, 3, 40, 8, 1, 22, 9, 13]
IDS = [f"e{i}" for i in range(len(TOKENS))]


def encode(i: int):
    g = torch.Generator().manual_seed(i)
    z = torch.randn(TOKENS[i], 2000, generator=g) * 3
    return encode_rows(z, SPEC, uniforms(0, IDS[i], TOKENS[i]), labels=z.argmax(1))


def write(folder, max_examples=4, provenance=None) -> CacheWriter:
    writer = CacheWriter(folder, SPEC, IDS, TOKENS, provenance or {"teacher": "t"}, max_examples=max_examples)
    for index in list(writer.missing):
        writer.write(index, (pack(encode(i), SPEC) for i in range(*writer.plan[index])))
    return writer


@pytest.fixture
def folder(tmp_path):
    write(tmp_path)
    return tmp_path


def test_rows_come_back_in_any_order(folder):
    reader = CacheReader(folder)
    assert reader.ids == IDS and len(reader.shards) == 3
    order = [7, 0, 1, 9, 4, 2]
    batch, at = reader.batch([IDS[i] for i in order]), 0
    for i in order:
        rows = reader.rows(IDS[i])
        assert len(rows) == TOKENS[i]
        np.testing.assert_array_equal(rows.ids[:, :16], encode(i).head_ids)
        piece, width = slice(at, at + TOKENS[i]), rows.ids.shape[1]
        np.testing.assert_array_equal(batch.ids[piece, :width], rows.ids)
        np.testing.assert_array_equal(batch.logits[piece, :16], rows.logits[:, :16])
        np.testing.assert_array_equal(batch.counts[piece, : width - 16], rows.counts)
        assert not batch.counts[piece, width - 16 :].any()
        at += TOKENS[i]
    assert len(batch) == at


def test_one_row_an_example_in_the_datas_order(folder):
    names = [pq.read_table(p, columns=["id", "tokens"]).to_pylist() for p in sorted(folder.glob("*.parquet"))]
    assert [(r["id"], r["tokens"]) for shard in names for r in shard] == list(zip(IDS, TOKENS, strict=True))


def test_row_groups_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "ROW_GROUP_BYTES", 2000)
    write(tmp_path, max_examples=100)
    file = pq.ParquetFile(tmp_path / "shard-00000.parquet")
    assert file.metadata.num_row_groups > 2
    reader = CacheReader(tmp_path, memory_bytes=3000)
    for i in (0, 9, 4, 0, 9, 4):
        assert len(reader.rows(IDS[i])) == TOKENS[i]
    assert reader._held <= 3000 or len(reader._groups) == 1


def test_flipped_bits_are_found_or_harmless(folder):
    """Wherever a bit flips, the shard is refused by name, or (unused bits of Parquet's footer) every row is intact."""
    path = folder / "shard-00001.parquet"
    whole = path.read_bytes()
    truth = {i: CacheReader(folder).rows(IDS[i]) for i in range(4, 8)}
    rng = np.random.default_rng(0)
    refused = 0
    flips = 300
    for at in rng.integers(0, len(whole), flips):
        data = bytearray(whole)
        data[at] ^= 1 << rng.integers(0, 8)
        path.write_bytes(data)
        try:
            reader = CacheReader(folder)
            found = {i: reader.rows(IDS[i]) for i in range(4, 8)}
        except UserError as error:
            assert "shard-00001.parquet" in str(error)
            refused += 1
            continue
        for i, rows in found.items():
            for name in ("ids", "logits", "counts", "tail_lse"):
                np.testing.assert_array_equal(getattr(rows, name), getattr(truth[i], name))
    assert refused > 0.8 * flips


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_truncated_shard_is_named(folder, keep):
    path = folder / "shard-00002.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"shard-00002\.parquet: shard is corrupt or truncated"):
        CacheReader(folder, verify=False)


def test_damage_after_opening_is_found_when_read(folder):
    reader = CacheReader(folder, verify=False)
    path = folder / "shard-00001.parquet"
    data = bytearray(path.read_bytes())
    for at in range(200, len(data) // 2, 50):
        data[at] ^= 255
    with path.open("r+b") as handle:  # same file, so the open reader sees it
        handle.write(data)
    with pytest.raises(UserError, match=r"shard-00001\.parquet"):
        reader.batch(IDS[4:8])


def test_missing_and_foreign_shards(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write(other, provenance={"teacher": "another"})
    (folder / "shard-00001.parquet").write_bytes((other / "shard-00001.parquet").read_bytes())
    with pytest.raises(UserError, match=r"shard-00001\.parquet: belongs to another cache.*provenance"):
        CacheReader(folder)
    (folder / "shard-00001.parquet").write_bytes((folder / "shard-00002.parquet").read_bytes())
    with pytest.raises(UserError, match=r"shard-00001\.parquet: is shard 2, not 1"):
        CacheReader(folder)
    (folder / "shard-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"shard-00001\.parquet: shard 2 of 3 is missing"):
        CacheReader(folder)
    with pytest.raises(UserError, match="holds no logit cache"):
        CacheReader(folder / "nowhere")


def test_writer_goes_on_and_mends(folder):
    messages = []
    assert CacheWriter(folder, SPEC, IDS, TOKENS, {"teacher": "t"}, max_examples=4).missing == []
    path = folder / "shard-00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    writer = CacheWriter(folder, SPEC, IDS, TOKENS, {"teacher": "t"}, max_examples=4, log=messages.append)
    assert writer.missing == [1] and writer.done_ids == set(IDS[:4] + IDS[8:])
    assert "shard-00001.parquet: shard is corrupt" in messages[0]
    write(folder)
    assert path.read_bytes() == whole


def test_a_failed_write_leaves_nothing(tmp_path):
    writer = CacheWriter(tmp_path, SPEC, IDS, TOKENS, max_examples=4)
    with pytest.raises(ValueError, match="5 rows for 0 tokens"):
        writer.write(0, [pack(encode(0), SPEC)] * 4)
    assert list(tmp_path.iterdir()) == []


def test_unknown_and_double_ids(folder):
    with pytest.raises(UserError, match="no example 'nobody'"):
        CacheReader(folder).batch(["nobody"])
    with pytest.raises(UserError, match="same id"):
        CacheWriter(folder, SPEC, ["a", "a"], [1, 1])


def test_threads_read_at_the_same_time(folder):
    reader = CacheReader(folder, memory_bytes=1)  # every row group pushes another out
    batches = [[IDS[i], IDS[(i + 3) % 10]] for i in range(10)] * 3
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda ids: reader.batch(ids).ids.tolist(), batches))
    assert got == [reader.batch(ids).ids.tolist() for ids in batches]
    with pytest.raises(UserError, match="nobody"):
        reader.batch(["e0", "nobody"])


def test_shards_are_planned_by_tokens_and_examples():
    assert plan_shards([5, 5, 5, 20, 1, 1, 1], 10, 2) == [(0, 2), (2, 3), (3, 4), (4, 6), (6, 7)]
    assert plan_shards([], 10, 2) == []


def test_certificate_adds_up_over_shards(folder):
    certificate = CacheReader(folder).certificate
    assert certificate["tokens"] == sum(TOKENS) and certificate["examples"] == len(TOKENS)
    stats = [encode(i).stats for i in range(len(TOKENS))]
    for name, key in (("loss", "loss"), ("accuracy", "correct"), ("entropy", "entropy")):
        assert certificate["teacher"][name] == pytest.approx(np.concatenate([s[key] for s in stats]).mean(), rel=1e-5)
    mass = np.concatenate([s["head_mass"] for s in stats])
    for i, t in enumerate(("1", "2", "3", "4")):
        entry = certificate["head_mass"][t]
        assert entry["mean"] == pytest.approx(mass[:, i].mean(), rel=1e-5)
        for name, q in (("p05", 0.05), ("p50", 0.5)):
            assert entry[name] == pytest.approx(np.quantile(mass[:, i], q), abs=0.02)
    assert certificate["provenance"] == {"teacher": "t"}
    # Every shard agrees with what was written for it alone: the footers are additive, not repeated.
    sizes = [p.stat().st_size for p in folder.glob("*.parquet")]
    assert certificate["bytes_per_token"] * sum(TOKENS) < sum(sizes)
