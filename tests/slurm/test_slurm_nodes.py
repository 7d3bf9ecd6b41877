"""One student trained over two nodes of a real SLURM job: the same losses as one process, each node's joules once."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cluster import Cluster
from slurm_workflow import Workflow, configuration, profile_for_tests

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def trained(finished: Workflow, folder: Path, nodes: int) -> tuple[Workflow, object]:
    """Train one more seed on that many nodes; the workflow and the training's spec."""
    training = {"max_steps": 8, "eval_every": 4, "checkpoint_every": 4, **({"nodes": nodes} if nodes > 1 else {})}
    config = configuration(training=training, pipelines={"kd": {"kind": "kd", "alpha": 0.3, "temperature": 2.0}})
    config |= {"accounting": {"baseline": "kd"}, "seeds": [5]}
    profile = profile_for_tests()
    if nodes > 1:
        stage = profile["set-resources"]["student_training"]
        del stage["gpu"]  # of the whole job, which srun refuses for a step on one of its nodes; `gres` is a node's
        stage |= {"nodes": nodes, "gres": "'gpu:1'"}
    workflow = finished.copy_to(folder, config, profile=profile)
    (spec,) = workflow.plan().of("student_training")
    return workflow.run([spec.sidecar], seconds=400), spec


def losses(workflow: Workflow, spec: object) -> dict[str, list[float]]:
    table = pq.read_table(workflow.folder / spec.folder / "trajectory.parquet").to_pydict()
    return {name: [value for value in table[name] if value is not None] for name in ("train_loss", "eval_loss")}


def test_two_nodes_train_one_student(finished: Workflow, whole_cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    alone, alone_spec = trained(finished, tmp_path / "one", 1)
    both, spec = trained(finished, tmp_path / "two", 2)
    (job,) = both.jobs("student_training")
    assert job["NumNodes"] == "2" and job["Restarts"] == "0", job

    record = both.sidecar(spec)
    assert {attempt.slurm_node for attempt in record.attempts} == set(whole_cluster.nodes)
    assert [attempt.outcome for attempt in record.attempts] == ["completed"] * 2
    assert {attempt.slurm_job_id for attempt in record.attempts} == {job["JobId"]}
    assert len({attempt.id for attempt in record.attempts}) == len({attempt.pid for attempt in record.attempts}) == 2
    parts = [[c.gross_j for c in attempt.components if c.in_total] for attempt in record.attempts]
    assert all(part > 0 for node in parts for part in node)
    assert record.energy.gross_j == pytest.approx(math.fsum(part for node in parts for part in node), rel=1e-9)
    assert record.energy.wasted_gross_j == 0

    expected = alone.sidecar(alone_spec)
    assert record.tokens.processed == expected.tokens.processed and record.tokens.loss == expected.tokens.loss
    assert record.results["steps"] == expected.results["steps"] == 8 and record.results["processes"] == 2
    one, two = losses(alone, alone_spec), losses(both, spec)
    assert len(one["train_loss"]) == len(two["train_loss"]) > 1 and one["train_loss"][0] != one["train_loss"][-1]
    for name in one:
        assert two[name] == pytest.approx(one[name], rel=1e-5), name
