"""Two workflows on one object store: the teacher is paid for once, and each counts the other's reuse."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from distill_energy.store import sidecar as schema
from distill_energy.store.artifact import damage
from distill_energy.store.remote import local_root

from .conftest import Workflow

TEACHER = {"teacher_logits", "teacher_generation"}
#: A Python that has the project's packages, s3fs and moto[server] (``make test-s3``).
S3_PYTHON = os.environ.get("DISTILL_ENERGY_S3_PYTHON", sys.executable)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def workflow(finished: Workflow, folder: Path, url: str, seed: int, *args, **rest) -> Workflow:
    """A workflow whose data and teacher's scores are there and nothing else, with a store and one seed to train."""
    for part in ("prerun", "preprocess", "evaluation/demo-big"):
        shutil.copytree(finished.folder / "results" / part, folder / "results" / part, copy_function=shutil.copyfile)
    shutil.copy(finished.config, folder)
    made = Workflow(folder, finished.repo, *args, **rest)
    kept = {"teacher_store": url, "seeds": [seed], "accounting": {"baseline": "kd", "drop_unusable_benchmarks": True}}
    made.edit(lambda d: d.update(kept, pipelines={"kd": d["pipelines"]["kd"]}))
    return made


def logits(made: Workflow, url: str) -> Path:
    (path,) = (made.folder / local_root(url) / "teacher_logits").glob("*/*/energy.json")
    return path.parent


def summary(made: Workflow) -> dict:
    made.run("--forcerun", "aggregate", "--", "results/summary.parquet")
    (row,) = pq.read_table(made.folder / "results" / "summary.parquet").to_pylist()
    return row


def share(finished: Workflow, tmp_path: Path, url: str, *args, **rest) -> tuple[Workflow, Workflow]:
    """The whole story; returns both workflows."""
    one = workflow(finished, tmp_path / "one", url, 1, *args, **rest)
    other = workflow(finished, tmp_path / "other", url, 2, *args, **rest)
    assert other.planned()["teacher_logits"] == 1
    one.run("--until", "student_training")
    assert not TEACHER & set(other.planned())
    assert sorted(p.name for p in logits(other, url).iterdir()) == ["energy.json", "power.parquet"]
    assert summary(other)["n_reuse"] == summary(one)["n_reuse"] == 2
    record = schema.read(logits(one, url) / "energy.json")
    assert schema.read(logits(other, url) / "energy.json") == record
    assert damage(logits(other, url), record) is None  # pulled when its student was trained
    (path,) = (other.folder / "results" / "student_training").glob("*/*/energy.json")
    assert "teacher_store" in {phase.name for phase in schema.read(path).attempts[0].phases}
    for made in (one, other):  # the teacher's joules are in both ledgers, the other's student in none
        rows = pq.read_table(made.folder / "results" / "ledger.parquet").to_pylist()
        assert [r["total_j"] for r in rows if r["stage"] in TEACHER] == [record.energy.gross_j]
        assert sorted(r["status"] for r in rows if r["stage"] == "student_training") == ["elsewhere", "ok"]
    return one, other


def test_two_workflows_share_a_store_behind_a_url(finished, tmp_path):
    url = f"file://{tmp_path}/store"
    _, other = share(finished, tmp_path, url)
    shard = next(iter(sorted(logits(other, url).glob("*.parquet"), key=lambda p: p.name == "power.parquet")))
    shard.unlink()
    place = tmp_path / "store" / "/".join(logits(other, url).parts[-3:]) / shard.name
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(content)
    other.edit(lambda d: d.update(seeds=[3]))
    done = other.run("--until", "student_training", "--retries", "0", check=False)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "differs from the hash" in line]
    assert done.returncode != 0 and said and all(f"file://{place}" in line for line in said)
    assert said[0].startswith("error: student_training/")


def test_a_store_that_cannot_be_reached_stops_the_plan_in_one_line(finished, tmp_path):
    made = workflow(finished, tmp_path / "one", "nonsense://bucket", 1)
    done = made.run("--dry-run", check=False)
    assert done.returncode != 0
    assert "nonsense" in done.stderr + done.stdout and "Traceback" not in done.stderr


@pytest.fixture
def s3():
    """Environment of clients of a real S3 protocol server with one bucket, ``teachers``."""
    if subprocess.run([S3_PYTHON, "-c", "import s3fs, moto.server"], capture_output=True).returncode:
        pytest.skip("needs s3fs and moto[server]: make test-s3")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    start = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"
    server = subprocess.Popen([S3_PYTHON, "-c", start, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    bucket = [S3_PYTHON, "-c", "import s3fs; s3fs.S3FileSystem().mkdir('teachers')"]
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(bucket, env={**os.environ, **environment}, capture_output=True).returncode:
            assert time.monotonic() < deadline and server.poll() is None, "the S3 server does not answer"
            time.sleep(0.5)
        yield environment
    finally:
        server.terminate()
        server.wait()


def test_two_workflows_share_a_store_on_s3(finished, tmp_path, s3):
    share(finished, tmp_path, "s3://teachers/energy", S3_PYTHON, **s3)


def test_a_bucket_that_is_not_there_costs_no_joule(finished, tmp_path, s3):
    made = workflow(finished, tmp_path / "one", "s3://nobody/energy", 1, S3_PYTHON, **s3)
    done = made.run("--until", "teacher_logits", "--retries", "0", check=False)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "s3://nobody/energy" in line]
    assert done.returncode != 0 and said and "Traceback" not in done.stderr
    assert not list((made.folder / local_root("s3://nobody/energy") / "attempts").rglob("journal.jsonl"))
