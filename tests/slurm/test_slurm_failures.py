"""A real SLURM, and what goes wrong on one: nothing is lost, and every attempt's joules are counted.

Each case starts from the finished tiny workflow and trains one more seed. After its first checkpoint the stage is
stopped (SIGSTOP), so that what goes wrong hits it in mid-stage on a fast machine and on a busy one. The teacher's
artifacts are there already: that no teacher job is submitted is checked each time.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from slurm_processes import wait_until
from slurm_workflow import Workflow, configuration

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

STEPS = 60


class Case:
    """A workflow whose one missing stage is a training."""

    def __init__(self, finished: Workflow, folder: Path) -> None:
        training = {"max_steps": STEPS, "eval_every": STEPS, "checkpoint_every": 5, "patience": 100}
        config = configuration(training=training, pipelines={"kd": {"kind": "kd", "alpha": 0.3, "temperature": 2.0}})
        config["accounting"] = {"baseline": "kd"}
        config["seeds"] = [7]
        self.workflow = finished.copy_to(folder, config)
        (self.spec,) = self.workflow.plan().of("student_training")

    def start(self) -> dict[str, str]:
        """Start, wait for a checkpoint, stop the stage; returns the SLURM job that runs it."""
        self.workflow.start([self.spec.sidecar])
        self.workflow.wait_for_checkpoint(self.spec)
        holder = json.loads((self.workflow.folder / self.spec.attempts / "lock").read_text())
        self.stage = int(holder["pid"])
        os.kill(self.stage, signal.SIGSTOP)
        assert not (self.workflow.folder / self.spec.sidecar).exists(), "the stage ended before it was stopped"
        return self.workflow.jobs("student_training")[-1]

    def go_on(self) -> None:
        """Let the stopped stage run."""
        os.kill(self.stage, signal.SIGCONT)

    def wait_for_second(self) -> None:
        """Wait until another process waits at the artifact's lock."""
        logs = self.workflow.folder / "logs" / "student_training"
        self.workflow.wait_for(
            lambda: any("waiting: " in path.read_text() for path in logs.rglob("*.log")), "a second one at the lock"
        )

    def finish(self, seconds: float = 400) -> Any:
        """Wait for the end; the sidecar, after the checks that every case shares."""
        assert self.workflow.wait(seconds) == 0, self.workflow.log()
        return self.check()

    def check(self) -> Any:
        workflow, spec = self.workflow, self.spec
        from distill_energy.store.artifact import damage

        record = workflow.sidecar(spec)
        assert damage(workflow.folder / spec.folder, record) is None
        assert record.results["steps"] == spec.params["training"]["max_steps"]
        assert {job["Comment"].split("_wildcards")[0] for job in workflow.jobs()} == {"rule_student_training"}
        # every attempt that left a journal is in the sidecar, and its joules are in the sum and in the ledger
        journals = {path.parent.name for path in (workflow.folder / spec.attempts).glob("*/journal.jsonl")}
        assert {attempt.id for attempt in record.attempts} == journals
        parts = [
            component.gross_j for attempt in record.attempts for component in attempt.components if component.in_total
        ]
        assert None not in parts and all(math.isfinite(part) for part in parts)
        assert record.energy.gross_j == pytest.approx(math.fsum(parts), rel=1e-9)
        row = workflow.ledger_row(spec)
        assert row["total_j"] == pytest.approx(record.energy.gross_j, rel=1e-9)
        assert row["attempts"] == len(record.attempts)
        lost = [attempt for attempt in record.attempts if attempt.outcome != "completed"]
        assert (row["wasted_j"] > 0) == bool(lost), row
        return record


def outcomes(record: Any) -> list[str]:
    return [attempt.outcome for attempt in record.attempts]


def test_scancel_is_retried_and_resumes(finished: Workflow, whole_cluster: Cluster, tmp_path: Path) -> None:
    case = Case(finished, tmp_path)
    job = case.start()
    whole_cluster.run("scancel", job["JobId"])
    record = case.finish()
    assert outcomes(record) == ["preempted", "completed"]  # both are a SIGTERM to the stage
    first, second = record.attempts
    assert first.slurm_job_id == job["JobId"] and second.slurm_job_id != job["JobId"]
    # resumed: the second attempt did not train all steps again
    assert 0 < second.tokens.processed < record.tokens.processed


def test_preempted_job_is_requeued_and_completes(finished: Workflow, whole_cluster: Cluster, tmp_path: Path) -> None:
    case = Case(finished, tmp_path)
    job = case.start()
    whole_cluster.run(
        *("sbatch", "--partition=urgent", "--exclusive", f"--nodelist={job['NodeList']}", "--time=2"),
        *("--output=/dev/null", "--wrap", "sleep 3"),
    )
    record = case.finish()
    assert outcomes(record)[-1] == "completed" and len(record.attempts) == 2, outcomes(record)
    assert outcomes(record)[0] in {"preempted", "killed"}
    # a requeue keeps the job's id: attempts have keys of their own
    assert {attempt.slurm_job_id for attempt in record.attempts} == {job["JobId"]}
    assert len({attempt.id for attempt in record.attempts}) == 2
    assert [(attempt.slurm_restart, attempt.slurm_restart_reason) for attempt in record.attempts] == [
        (0, None),
        (1, None),
    ]
    assert record.attempts[0].slurm_node == job["NodeList"]  # all nodes of the test cluster have one host name
    (job,) = case.workflow.jobs("student_training")
    assert record.attempts[1].slurm_node == job["NodeList"]
    assert job["Restarts"] == "1" and job["JobState"] == "COMPLETED"


def test_lost_node_is_replaced(finished: Workflow, whole_cluster: Cluster, tmp_path: Path) -> None:
    case = Case(finished, tmp_path)
    job = case.start()
    killed = whole_cluster.kill_node(job["NodeList"])
    assert len(killed) > 2  # the step daemons, both Snakemakes, the stage, its sampler
    record = case.finish()
    assert outcomes(record) == ["killed", "completed"]
    (after,) = case.workflow.jobs("student_training")
    assert after["NodeList"] != job["NodeList"] and after["Restarts"] == "1"


def test_lost_slurmd_leaves_one_stage_not_two(finished: Workflow, whole_cluster: Cluster, tmp_path: Path) -> None:
    """slurmd dies, its job lives on, SLURM starts the job again elsewhere: the lock lets one of them work."""
    case = Case(finished, tmp_path)
    job = case.start()
    whole_cluster.kill_slurmd(job["NodeList"])
    case.wait_for_second()
    case.go_on()
    record = case.finish()
    (after,) = case.workflow.jobs("student_training")
    assert after["NodeList"] != job["NodeList"] and after["Restarts"] == "1"
    # the orphan finished the stage; the restarted job found the artifact whole
    assert outcomes(record) == ["completed"]
    logs = list((case.workflow.folder / "logs" / "student_training").rglob("*.log"))
    assert any("the artifact is whole already" in path.read_text() for path in logs)


def test_jobs_outlive_a_killed_snakemake_and_are_not_doubled(
    finished: Workflow, whole_cluster: Cluster, tmp_path: Path
) -> None:
    case = Case(finished, tmp_path)
    job = case.start()
    case.workflow.kill(signal.SIGKILL)
    assert whole_cluster.run("squeue", "-h", "-j", job["JobId"], "-o", "%T").strip() == "RUNNING"
    shutil.rmtree(case.workflow.folder / ".snakemake" / "locks")  # what `snakemake --unlock` does
    case.workflow.start([case.spec.sidecar])
    case.wait_for_second()
    case.go_on()
    record = case.finish()
    assert outcomes(record) == ["completed"]
    assert len(case.workflow.jobs("student_training")) == 2  # the duplicate waited and found the work done
    wait_until(lambda: not whole_cluster.run("squeue", "-h"), 30, "an empty queue")
