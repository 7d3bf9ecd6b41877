"""SLURM with accounting: why the profile asks squeue. Runs before the session's own cluster is up."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import ETC, Cluster
from slurm_processes import Unavailable, marked, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def accounted() -> Iterator[Cluster]:
    if (ETC / "slurm.conf").is_symlink():
        pytest.skip("another test cluster is up: run this file alone")
    with tempfile.TemporaryDirectory(prefix="distill-energy-slurm-") as name:
        cluster = Cluster(Path(name), nodes=("node0",), gpus=0, accounting=True)
        try:
            with cluster:
                yield cluster
        except Unavailable as reason:
            pytest.skip(str(reason))
        assert marked(name) == []  # nothing is left behind
        assert not (ETC / "slurm.conf").is_symlink()


def submit(cluster: Cluster, command: str) -> str:
    return cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap", command).strip()


def sacct(cluster: Cluster, job: str) -> str:
    return cluster.run("sacct", "-X", "-n", "-P", "-j", job, "-o", "State").strip()


def squeue(cluster: Cluster, job: str) -> str:
    return cluster.run("squeue", "-h", "--states=all", "-j", job, "-o", "%T").strip()


def test_jobs_are_accounted_for(accounted: Cluster) -> None:
    job = submit(accounted, "true")
    wait_until(lambda: sacct(accounted, job) == "COMPLETED", 30, "COMPLETED in sacct")


def test_only_squeue_names_a_cancelled_job_plainly(accounted: Cluster) -> None:
    job = submit(accounted, "sleep 60")
    wait_until(lambda: squeue(accounted, job) == "RUNNING", 30, "RUNNING")
    accounted.run("scancel", job)
    wait_until(lambda: squeue(accounted, job) == "CANCELLED", 30, "CANCELLED")
    wait_until(lambda: sacct(accounted, job).startswith("CANCELLED"), 30, "CANCELLED in sacct")
    assert sacct(accounted, job) == "CANCELLED by 0"
