"""The tiny workflow through a real SLURM: everything is made, nothing shares a device, the teacher is reused."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Cluster
from slurm_workflow import Workflow, configuration, overlaps, windows

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def test_every_target_and_every_stage_is_made(finished: Workflow) -> None:
    names = ["pareto.pdf", "stage_breakdown.pdf", "amortization.pdf", "ledger.parquet", "summary.parquet"]
    missing = [
        name for name in [*names, "summary.csv", "report.html"] if not (finished.folder / "results" / name).exists()
    ]
    assert not missing, finished.log()

    import pyarrow.parquet as pq

    ledger = pq.read_table(finished.folder / "results" / "ledger.parquet").to_pylist()
    assert {(row["stage"], row["name"], row["version"]) for row in ledger} == set(finished.plan().nodes)
    for row in ledger:
        assert row["attempts"] == 1, row
        assert row["total_j"] is None or row["total_j"] > 0, row


def test_stages_ran_as_jobs_of_their_own_on_both_nodes(finished: Workflow) -> None:
    jobs = {job["JobId"]: job for job in finished.jobs()}
    assert {job["JobState"] for job in jobs.values()} == {"COMPLETED"}
    used = [finished.sidecar(spec).attempts[0].slurm_job_id for spec in finished.plan().nodes.values()]
    assert sorted(used, key=int) == sorted(jobs, key=int)
    # the meter's limit is one host's: with resource_scopes at their default it would serialise the cluster
    assert {jobs[number]["NodeList"] for number in used} == set(finished.cluster.nodes)


def test_two_stages_never_share_a_metered_gpu(finished: Workflow) -> None:
    found = windows(finished, finished.plan().nodes.values())
    assert len(found) == len(finished.plan().nodes)
    assert overlaps(found) == []


def test_gpu_stages_asked_for_one_gpu_and_a_node_alone(finished: Workflow) -> None:
    for job in finished.jobs():
        assert job["OverSubscribe"] == "NO" and job["NumCPUs"] == str(finished.cluster.cpus), job
        assert job["Requeue"] == "1", job
    for rule in ("student_training", "teacher_logits", "teacher_generation", "evaluation", "prerun"):
        for job in finished.jobs(rule):
            assert job["TresPerJob"] == "gres:gpu:1", job


def test_logs_of_successful_jobs_are_kept(finished: Workflow) -> None:
    for job in finished.jobs():
        log = Path(job["StdOut"])
        assert log.stat().st_size > 0, job
        assert finished.folder / "logs" in log.parents


def test_nothing_is_left_to_do(finished: Workflow) -> None:
    before = len(finished.cluster.jobs())
    finished.run()
    assert len(finished.cluster.jobs()) == before


def test_adding_a_student_submits_no_teacher_job(finished: Workflow, whole_cluster: Cluster, tmp_path: Path) -> None:
    config = configuration(models={"other": {"source": "pruned", "of": "big", "layers": 1}})
    config["students"] = [*config["students"], "other"]
    grown = finished.copy_to(tmp_path, config)
    old = finished.plan().nodes
    added = [spec for key, spec in grown.plan().nodes.items() if key not in old]
    trainings = [spec.sidecar for spec in added if spec.stage == "student_training"]
    assert len(trainings) == 3 and {spec.stage for spec in added} == {"student_training", "evaluation"}
    grown.run(trainings)
    assert len(grown.jobs()) == len(grown.jobs("student_training")) == 3, [job["Comment"] for job in grown.jobs()]
    teacher = {spec.version for spec in grown.plan().nodes.values() if spec.stage.startswith("teacher_")}
    trained = [spec for spec in added if spec.stage == "student_training"]
    read = {item.version for spec in trained for item in grown.sidecar(spec).consumes}
    assert teacher <= read
