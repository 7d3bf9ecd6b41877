"""A clone that has nothing but a store's name: no teacher is paid again, no reader finds a hole, several users work."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from distill_energy.store import sidecar as schema

from .conftest import TINY, Workflow

TEACHER = {"teacher_logits", "teacher_generation"}
ROOT = os.geteuid() == 0
#: Ids that no account needs: a shared group, and two users whose own groups are others.
GROUP, FIRST, SECOND, THIRD = 44_000, 44_001, 44_002, 44_003

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def made_once(tmp_path_factory) -> Path:
    """A store with one teacher's logits, made by a workflow whose folder is gone."""
    folder = tmp_path_factory.mktemp("maker")
    bare(folder / "w", str(folder / "store")).run("--until", "teacher_logits")
    shutil.rmtree(folder / "w")
    return folder / "store"


@pytest.fixture
def store(made_once, tmp_path) -> Path:
    return shutil.copytree(made_once, tmp_path / "store")


def bare(folder: Path, store: str, seed: int = 1) -> Workflow:
    """A workflow's folder that holds a configuration and nothing else."""
    folder.mkdir(parents=True)
    made = Workflow(folder)
    shutil.copy(TINY, made.config)
    made.edit(lambda d: d.update(teacher_store=store, seeds=[seed], pipelines={"kd": d["pipelines"]["kd"]}))
    made.edit(lambda d: d["accounting"].update(baseline="kd"))
    return made


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_a_bare_clone_plans_no_teacher_job(store, tmp_path, kind):
    made = bare(tmp_path / "w", str(store) if kind == "folder" else f"file://{store}")
    planned = made.planned()
    assert planned["student_training"] == 1 and planned["preprocess_data"] == 1
    assert not TEACHER & set(planned)
    assert not TEACHER & set(made.planned("--rerun-triggers", "code", "input", "mtime", "params", "software-env"))


def test_an_artifact_that_left_the_store_is_planned(store, tmp_path):
    made = bare(tmp_path / "w", str(store))
    assert not TEACHER & set(made.planned())
    shutil.rmtree(store / "teacher_logits")
    assert made.planned()["teacher_logits"] == 1


def test_what_a_student_sampled_lies_in_the_store_too(tmp_path):
    made = Workflow(tmp_path)
    shutil.copy(TINY, made.config)
    kd = {"alpha": 0.3, "temperature": 1.0}
    pipelines = {"sft": {"kind": "sft"}, "off": {"kind": "offline_policy", **kd}}
    made.edit(lambda d: d.update(pipelines=pipelines, teacher_store=str(tmp_path / "store")))
    planned = made.planned()
    assert (planned["teacher_logits"], planned["teacher_generation"]) == (1, 1)


class Reader(threading.Thread):
    """Reads a sidecar again and again: how often, and what was not whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.reads, self.holes, self.ended = path, 0, [], threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.0005):
            try:
                schema.read(self.path)
                self.reads += 1
            except Exception as error:
                self.holes.append(repr(error))

    def __enter__(self) -> "Reader":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.join()


def test_readers_find_a_whole_sidecar_whatever_another_workflow_does(store, tmp_path):
    made = bare(tmp_path / "w", str(store))
    made.run("--until", "preprocess_data")
    (path,) = store.glob("teacher_logits/*/*/energy.json")
    with Reader(path) as reader:
        made.run("--until", "teacher_logits", "--forcerun", "teacher_logits")  # restored
        shard = path.parent / "shard-00000.parquet"
        shard.write_bytes(shard.read_bytes()[:-1])  # damaged: made again
        made.run("--until", "teacher_logits", "--forcerun", "teacher_logits")
    assert reader.reads > 1000 and not reader.holes, reader.holes[:1]
    assert len(schema.read(path).attempts) == 2


@pytest.mark.skipif(not (ROOT and shutil.which("setpriv")), reason="needs root and setpriv to become two users")
def test_two_users_share_a_store_by_their_group():
    """The second user, from a bare clone, under a closed umask: no teacher job, a student, N counted in the store."""

    def user(uid: int, folder: Path) -> Workflow:
        mine = list(groups)
        made = bare(folder, str(store), seed=uid)
        for path in (folder, *folder.iterdir()):
            os.chown(path, uid, uid)
        # The interpreter may lie in a folder of root's: everything may be read, and nothing more written.
        become = ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--no-new-privs"]
        become += ["--groups", ",".join(map(str, mine))] if mine else ["--clear-groups"]
        become += ["--inh-caps", "-all,+dac_read_search", "--ambient-caps", "-all,+dac_read_search"]
        own = {**os.environ, "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        own |= {"TMPDIR": str(folder), "USER": f"u{uid}", "PYTHONDONTWRITEBYTECODE": "1"}

        def run(*args, check=True):
            command = [
                *become, sys.executable, "-m", "snakemake", "--snakefile", str(made.repo / "Snakefile"), "--directory",
                str(folder), "--configfile", str(made.config), "--workflow-profile",
                str(made.repo / "profiles" / "default"), "--cores", "all", "--retries", "0", *args,
            ]  # fmt: skip
            done = subprocess.run(
                command, capture_output=True, text=True, env=own, cwd=folder, check=False, umask=0o077
            )
            if check and done.returncode:
                raise AssertionError(done.stdout[-4000:] + done.stderr[-4000:])
            return done

        made.run = run
        return made

    groups = [GROUP]
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        base = Path(place)
        base.chmod(0o755)
        store = base / "store"
        store.mkdir()
        os.chown(store, 0, GROUP)
        store.chmod(0o2770)
        first, second = user(FIRST, base / "one"), user(SECOND, base / "other")
        assert first.planned()["teacher_logits"] == 1
        first.run("--until", "student_training")
        (path,) = store.glob("teacher_logits/*/*/energy.json")
        assert path.stat().st_uid == FIRST
        planned = second.planned()
        assert planned["student_training"] == 1 and not TEACHER & set(planned)
        second.run("--until", "student_training")
        assert len(list(store.glob("consumers/*/*/*/*.json"))) == 2
        assert {p.stat().st_gid for p in store.rglob("*")} == {GROUP}
        assert all(p.stat().st_mode & 0o060 == 0o060 for p in store.rglob("*"))
        path.with_name("shard-00000.parquet").unlink()  # the second user mends what the first made
        second.run("--until", "teacher_logits", "--forcerun", "teacher_logits")
        assert path.stat().st_uid == SECOND and len(schema.read(path).attempts) == 2
        groups = []  # a third user, who may read alone, is told before anything is spent
        store.chmod(0o2775)
        for found in store.rglob("*"):
            found.chmod(found.stat().st_mode | (0o5 if found.is_dir() else 0o4))
        third = user(THIRD, base / "third")
        done = third.run("--until", "student_training", check=False)
        (said,) = {line for line in done.stderr.splitlines() if "teacher_store" in line and "cannot write" in line}
        assert "chgrp -R GROUP" in said and not list((base / "third").rglob("trajectory.parquet"))
