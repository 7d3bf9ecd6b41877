"""Fixtures: one cluster for the session, and one finished run of the tiny workflow that other tests start from."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from slurm_processes import Unavailable
from slurm_workflow import Workflow, configuration


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes with a GPU each. Skips only where SLURM cannot be had at all; a failing start is an error."""
    root = Path(tempfile.mkdtemp(prefix="distill-energy-slurm-"))
    try:
        with Cluster(root) as running:
            yield running
    except Unavailable as reason:
        pytest.skip(str(reason))
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def whole_cluster(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with every node up before and after the test, and no job left."""
    yield cluster
    cluster.run("scancel", "--user=root", check=False)
    for node in cluster.nodes:
        if f"slurmd-{node}" not in cluster.procs:
            cluster.start_node(node)
    cluster.wait_idle()


@pytest.fixture(scope="session")
def finished(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The tiny workflow, run through SLURM from nothing to the report."""
    return Workflow(tmp_path_factory.mktemp("finished"), cluster, configuration()).run(seconds=600)
