"""Sidecars are honest, files are whole, a stage never runs twice at once."""

import json
import multiprocessing
import time

import pytest

from distill_energy.errors import UserError
from distill_energy.store import atomic
from distill_energy.store import sidecar as schema
from distill_energy.store.artifact import damage, produced
from distill_energy.store.lock import artifact_lock
from distill_energy.store.teacher_store import consumers, register


def component(**changes):
    return {"component": "cpu", "source": "estimated", "method": "codecarbon_process", "gross_j": 5.0, **changes}


def make(**changes):
    attempt = {"id": "a1", "host": "h", "start_utc": "2026-01-01T00:00:00+00:00", "start_mono_s": 0.0,
               "outcome": "completed", "components": [component()]}  # fmt: skip
    data = {"stage": "student_training", "name": "n", "version": "0" * 12, "recipe": 1, "params": {},
            "attempts": [attempt], "energy": {"components": [component()], "gross_j": 5.0, "source": "estimated"},
            "quality": {}, "co2e": {"reason": "no grid"}, "hardware": {"host": "h"}, "software": {"python": "3.11"},
            "created_utc": "2026-01-01T00:00:00+00:00"}  # fmt: skip
    return schema.Sidecar.model_validate({**data, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gross_j": None}, "null without a reason"),
        ({"gross_j": -1.0}, "not negative"),
        ({"gross_j": float("nan")}, "finite"),
        ({"source": "unavailable"}, "has no joules"),
        ({"method": None}, "needs a method"),
    ],
)
def test_dishonest_components_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        schema.Component.model_validate(component(**changes))


def test_total_is_null_if_one_part_is_unknown_and_never_zero_for_nothing():
    known = schema.Component.model_validate(component())
    lost = schema.Component(component="gpu", source="unavailable", reason="lost")
    absent = schema.Component(component="gpu", source="unavailable", reason="no GPU", in_total=False)
    assert schema.total([known, known])[0] == 10.0
    assert schema.total([known, absent])[0] == 5.0
    assert schema.total([known, lost])[:3] == (None, None, "unavailable")
    assert schema.total([])[0] is None


def test_sidecar_round_trip_and_bad_files_are_named(tmp_path):
    path = tmp_path / "energy.json"
    atomic.write_text(path, schema.dump(make()))
    assert schema.read(path) == make()
    text = path.read_text()
    for bad, says in [
        (text[: len(text) // 2], "not a whole JSON document"),
        (text.replace('"schema_version": 1', '"schema_version": 99'), "schema_version 99"),
        (text.replace('"gross_j": 5.0', '"gross_j": -5.0'), "not negative"),
        (text.replace('"student_training"', '"nope"'), "not one of"),
        ("[]", "JSON object"),
    ]:
        path.write_text(bad)
        with pytest.raises(UserError, match=says) as caught:
            schema.read(path)
        assert str(path) in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        schema.read(tmp_path / "none.json")


def test_atomic_write_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "x.txt"
    atomic.write_text(path, "old")
    with pytest.raises(RuntimeError), atomic.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_damage_names_the_file(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w.bin").write_bytes(b"1234")
    (tmp_path / "energy.json").write_text("{}")
    record = make(produces=[p.model_dump() for p in produced(tmp_path)])
    assert [p.path for p in record.produces] == ["model/w.bin"]
    assert damage(tmp_path, record) is None
    (tmp_path / "model" / "w.bin").write_bytes(b"1235")
    assert "w.bin differs" in damage(tmp_path, record)
    (tmp_path / "model" / "w.bin").write_bytes(b"123")
    assert "has 3 bytes" in damage(tmp_path, record)
    (tmp_path / "model" / "w.bin").unlink()
    assert "is missing" in damage(tmp_path, record)


def _hold(folder, log, seconds):
    with artifact_lock(folder, lambda _: None, poll_s=0.01) as waited:
        with open(log, "a") as handle:
            handle.write(json.dumps([time.monotonic(), waited]) + "\n")
        time.sleep(seconds)
        with open(log, "a") as handle:
            handle.write(json.dumps([time.monotonic(), waited]) + "\n")


def test_two_processes_never_hold_one_artifact(tmp_path):
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=_hold, args=(tmp_path / "a", tmp_path / "log", 0.2)) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(30)
    spans = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(spans) == 4
    assert spans[0][0] <= spans[1][0] <= spans[2][0] <= spans[3][0]
    assert spans[1][0] - spans[0][0] >= 0.19  # the first held it to its end


def test_lock_dies_with_its_holder(tmp_path):
    context = multiprocessing.get_context("spawn")
    job = context.Process(target=_hold, args=(tmp_path / "a", tmp_path / "log", 60))
    job.start()
    while not (tmp_path / "log").exists():
        time.sleep(0.02)
    job.kill()
    job.join()
    start = time.monotonic()
    with artifact_lock(tmp_path / "a", lambda _: None):
        assert time.monotonic() - start < 5


def test_teacher_store_counts_each_consumer_once(tmp_path):
    consumed = [
        {"role": "teacher_logits", "stage": "teacher_logits", "name": "t-d", "version": "1" * 12},
        {"role": "data", "stage": "preprocess", "name": "data-d", "version": "2" * 12},
    ]
    for version in ("a" * 12, "a" * 12, "b" * 12):
        register(tmp_path, make(version=version, consumes=consumed), tmp_path / "results")
    found = list(consumers(tmp_path))
    assert len(found) == 2
    register(tmp_path, make(version="a" * 12, consumes=consumed), tmp_path / "another" / "results")
    assert len(list(consumers(tmp_path))) == 3  # another workflow trained the same run, at its own cost

    assert {schema.read(p).version for p in found} == {"a" * 12, "b" * 12}


def test_small_tables_are_not_compressed(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for rows, codec in ((10, "UNCOMPRESSED"), (100_000, "ZSTD")):
        atomic.write_parquet(tmp_path / "t.parquet", pa.table({"x": list(range(rows))}))
        file = pq.ParquetFile(tmp_path / "t.parquet")
        assert file.metadata.row_group(0).column(0).compression == codec
        assert file.read().column("x").to_pylist() == list(range(rows))
