"""A teacher store behind a URL: what is pushed is whole, what is pulled is verified, what is missing is not guessed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from distill_energy.errors import UserError
from distill_energy.store import atomic
from distill_energy.store import sidecar as schema
from distill_energy.store.artifact import damage, produced
from distill_energy.store.remote import Remote, is_remote, local_root
from distill_energy.store.teacher_store import consumers

from .test_store import make

KEY = ("teacher_logits", "t-d", "1" * 12)


def artifact(mirror: Path, files: dict[str, bytes]) -> schema.Sidecar:
    """A committed artifact of those files in the mirror."""
    folder = mirror.joinpath(*KEY)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / schema.POWER_NAME).write_bytes(b"power")
    record = make(stage=KEY[0], name=KEY[1], version=KEY[2], produces=[p.model_dump() for p in produced(folder)])
    atomic.write_text(folder / schema.SIDECAR_NAME, schema.dump(record))
    return record


def quiet(_: str) -> None:
    pass


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    yield f"file://{tmp_path}/store" if request.param == "file" else f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").store.clear()


def test_a_folder_is_no_url_and_a_url_has_a_mirror_of_its_own():
    assert not is_remote(None) and not is_remote("/shared/teachers") and not is_remote("teachers")
    assert local_root(None) == "results" and local_root("/shared/teachers") == "/shared/teachers"
    one, other = local_root("s3://a/b"), local_root("s3://a/c")
    assert one != other and one.startswith("results/teacher_store/") and one == local_root("s3://a/b/")


def test_what_one_workflow_pushes_another_takes_and_verifies(tmp_path, url):
    files = {"shard-00000.parquet.bin": os.urandom(3000), "model/config.json": b"{}"}
    one, other = Remote(url, tmp_path / "one"), Remote(url, tmp_path / "other")
    record = artifact(one.mirror, files)
    assert other.take(KEY) is None
    one.push(KEY, record, quiet)
    other.refresh([KEY, ("teacher_logits", "t-d", "2" * 12)])
    folder = other.mirror.joinpath(*KEY)
    assert sorted(p.name for p in folder.iterdir()) == ["energy.json", "power.parquet"]  # the plan needs no more
    assert schema.read(folder / schema.SIDECAR_NAME) == record
    assert {item.path for item in other.lacking(KEY)} == set(files)
    other.fetch(KEY, quiet)
    assert damage(folder, record) is None and other.lacking(KEY) == []


def test_a_corrupted_object_is_named_and_never_lies_in_the_mirror(tmp_path, url):
    one, other = Remote(url, tmp_path / "one"), Remote(url, tmp_path / "other")
    one.push(KEY, artifact(one.mirror, {"shard": b"abcd", "whole": b"x"}), quiet)
    other.refresh([KEY])
    for content, says in ((b"abce", "differs from the hash"), (b"ab", "has 2 bytes, its sidecar says 4")):
        other.fs.pipe_file(f"{other.base}/{'/'.join(KEY)}/shard", content)
        with pytest.raises(UserError, match=says) as caught:
            other.fetch(KEY, quiet)
        assert f"{url}/{'/'.join(KEY)}/shard" in str(caught.value) and "\n" not in str(caught.value)
        assert not (other.mirror.joinpath(*KEY) / "shard").exists()
    other.fs.rm(f"{other.base}/{'/'.join(KEY)}/shard")
    with pytest.raises(UserError, match="shard: FileNotFoundError"):
        other.fetch(KEY, quiet)


def test_a_sidecar_cannot_name_a_file_outside_its_artifact(tmp_path, url):
    one, other = Remote(url, tmp_path / "one"), Remote(url, tmp_path / "other")
    record = artifact(one.mirror, {"shard": b"abcd"})
    record.produces[0].path = "../../../../evil"
    one._write(f"{'/'.join(KEY)}/{schema.SIDECAR_NAME}", record.model_dump_json())
    one._write(f"{'/'.join(KEY)}/{schema.POWER_NAME}", "")
    with pytest.raises(UserError, match=r"produces\.0\.path.*cannot be a part of a path"):
        other.refresh([KEY])


def test_an_artifact_in_the_store_is_never_overwritten(tmp_path, url):
    one, other = Remote(url, tmp_path / "one"), Remote(url, tmp_path / "other")
    one.push(KEY, artifact(one.mirror, {"shard": b"abcd"}), quiet)
    second = artifact(other.mirror, {"shard": b"another execution"})
    second.attempts[0].id = "a2"
    said = []
    other.push(KEY, second, said.append)
    assert "made by another workflow" in said[0]
    third = Remote(url, tmp_path / "third")
    third.refresh([KEY])
    third.fetch(KEY, quiet)
    assert (third.mirror.joinpath(*KEY) / "shard").read_bytes() == b"abcd"


PUSH = """
import sys
from distill_energy.store.remote import Remote
from distill_energy.store.sidecar import read
store, key = Remote(sys.argv[1], sys.argv[2]), tuple(sys.argv[3].split("/"))
store.push(key, read(store.mirror.joinpath(*key) / "energy.json"), print)
"""


def test_a_push_killed_half_way_leaves_no_artifact_and_is_made_good(tmp_path):
    url, count = f"file://{tmp_path}/store", 400
    one, other = Remote(url, tmp_path / "one"), Remote(url, tmp_path / "other")
    record = artifact(one.mirror, {f"shard-{i:05d}": os.urandom(200_000) for i in range(count)})
    command = [sys.executable, "-c", PUSH, url, str(one.mirror), "/".join(KEY)]
    place = (tmp_path / "store").joinpath(*KEY)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "workflow_scripts")}
    pusher = subprocess.Popen(command, env=environment)
    while pusher.poll() is None and not (place / "shard-00005").exists():
        time.sleep(0.001)
    os.kill(pusher.pid, signal.SIGKILL)
    pusher.wait()
    assert 5 < len(list(place.iterdir())) < count  # it was in the middle of it
    assert not (place / schema.SIDECAR_NAME).exists()
    other.refresh([KEY])
    assert not other.mirror.joinpath(*KEY).exists()
    subprocess.run(command, env=environment, check=True)
    other.refresh([KEY])
    other.fetch(KEY, quiet)
    assert damage(other.mirror.joinpath(*KEY), record) is None


def test_consumers_are_pulled_for_the_artifacts_at_hand(tmp_path, url):
    one, other = Remote(url, tmp_path / "one"), Remote(url, tmp_path / "other")
    one.push(KEY, artifact(one.mirror, {"shard": b"abcd"}), quiet)
    read = [dict(zip(("role", "stage", "name", "version"), (KEY[0], *KEY), strict=True))]
    elsewhere = [{**read[0], "version": "9" * 12}]
    for version, consumed in (("a" * 12, read), ("a" * 12, read), ("b" * 12, read), ("c" * 12, elsewhere)):
        one.register(make(version=version, consumes=consumed), tmp_path / "one" / "results")
    other.refresh([KEY])
    other.pull_consumers()
    assert {schema.read(path).version for path in consumers(other.mirror)} == {"a" * 12, "b" * 12}
    (kept,) = (path for path in consumers(other.mirror) if path.name.startswith("b"))
    other.fs.rm(f"{other.base}/consumers/{'/'.join(KEY)}/{kept.name}")
    other.pull_consumers()
    assert {schema.read(path).version for path in consumers(other.mirror)} == {"a" * 12}


def test_a_store_that_cannot_be_had_is_named_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"file://{tmp_path}/file/distill-energy-store.txt: "):
        Remote(f"file://{tmp_path}/file", tmp_path / "m").prepare()
    with pytest.raises(UserError, match="nonsense"):
        Remote("nonsense://x/y", tmp_path / "m")
    if not any(Path(path, "gcsfs").is_dir() for path in sys.path):
        with pytest.raises(UserError, match="needs the package gcsfs"):
            Remote("gs://bucket/prefix", tmp_path / "m")
