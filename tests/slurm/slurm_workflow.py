"""The project's workflow in a folder of its own, run through a test cluster with the project's own profile."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from cluster import Cluster
from slurm_processes import ClusterError

REPO = Path(__file__).resolve().parents[2]
TINY = REPO / "configs/smoke.yaml"
PROFILE = REPO / "profiles/slurm/config.yaml"


def profile_for_tests(**changes: Any) -> dict[str, Any]:
    """The project's SLURM profile with what a small machine needs: memory, run time, cores, shorter waits.

    Everything else (rules' GPUs, exclusive nodes, requeue, retries, status command) is the profile's own.
    """
    profile = yaml.safe_load(PROFILE.read_text())
    profile |= {"cores": 1, "slurm-init-seconds-before-status-checks": 2, "latency-wait": 10, "jobs": 20}
    profile["default-resources"] |= {"mem_mb": 1000, "runtime": 10}
    for resources in profile["set-resources"].values():
        resources |= {"mem_mb": 2500, "runtime": 10}
    return profile | changes


def configuration(**changes: Any) -> dict[str, Any]:
    """The tiny configuration, with top-level sections merged with ``changes`` (mappings key by key)."""
    config = yaml.safe_load(TINY.read_text())
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) and key != "pipelines" else value
    return config


class Workflow:
    """One folder with its results; Snakemake runs in it as a child process."""

    def __init__(self, folder: Path, cluster: Cluster, config: dict[str, Any], profile: dict[str, Any] | None = None):
        self.folder, self.cluster, self.config = folder, cluster, config
        (folder / "profile").mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        (folder / "profile" / "config.yaml").write_text(yaml.safe_dump(profile or profile_for_tests()))
        self.first_job = len(cluster.jobs())
        self.process: subprocess.Popen | None = None

    def copy_to(self, folder: Path, config: dict[str, Any], **rest: Any) -> "Workflow":
        """Another workflow that starts from this one's results."""
        shutil.copytree(self.folder / "results", folder / "results")
        return Workflow(folder, self.cluster, config, **rest)

    # --- running -----------------------------------------------------------------------------------------------------
    def start(self, targets: Iterable[str] = (), *options: str) -> "Workflow":
        """Start Snakemake; its output goes to ``snakemake.out``."""
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPO / "Snakefile"), "--configfile"]
        command += ["config.yaml", "--workflow-profile", "profile", *options, "--", *targets]
        env = {**self.cluster.env, "OMP_NUM_THREADS": "1"}
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        with (self.folder / "snakemake.out").open("ab") as out:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        return self

    def wait(self, seconds: float = 240) -> int:
        """Exit status; on time-out Snakemake is ended and the test fails with the log's end."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill(signal.SIGTERM)
            raise ClusterError(f"the workflow did not end in {seconds:g} s\n{self.log()}") from None

    def run(self, targets: Iterable[str] = (), *options: str, seconds: float = 240) -> "Workflow":
        """Start and wait; the exit status must be 0."""
        status = self.start(targets, *options).wait(seconds)
        assert status == 0, self.log()
        return self

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal Snakemake's main process alone and collect it (after SIGKILL at once)."""
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, number)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def log(self, lines: int = 60) -> str:
        path = self.folder / "snakemake.out"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no output)"

    # --- what happened -----------------------------------------------------------------------------------------------
    def jobs(self, rule: str = "") -> list[dict[str, str]]:
        """SLURM jobs submitted since this workflow was made, of one rule (by the comment that the plugin sets)."""
        jobs = self.cluster.jobs()[self.first_job :]
        return [job for job in jobs if job.get("Comment", "").startswith(f"rule_{rule}")]

    def plan(self) -> Any:
        """The plan of the configuration."""
        from distill_energy.config import parse_config
        from distill_energy.plan import build_plan

        return build_plan(parse_config(copy.deepcopy(self.config), "test"))

    def sidecar(self, spec: Any) -> Any:
        """The validated sidecar of a stage."""
        from distill_energy.store import sidecar

        return sidecar.read(self.folder / spec.sidecar)

    def ledger_row(self, spec: Any) -> dict[str, Any]:
        """The stage's row in a ledger built from what lies in the folder now."""
        from distill_energy.ledger.ledger import collect_rows

        rows, _ = collect_rows([self.folder / "results"])
        found = [row for row in rows if (row["stage"], row["name"], row["version"]) == spec.key]
        assert len(found) == 1, f"{spec.key}: {len(found)} rows"
        return found[0]

    def wait_for(self, ready: Callable[[], Any], what: str, seconds: float = 240) -> Any:
        """Poll until ``ready`` gives something true while Snakemake runs; returns it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = ready()
            if found:
                return found
            if self.process.poll() is not None:
                raise ClusterError(f"the workflow ended ({self.process.returncode}) before: {what}\n{self.log()}")
            time.sleep(0.1)
        raise ClusterError(f"not seen in {seconds:g} s: {what}\n{self.log()}")

    def wait_for_checkpoint(self, spec: Any, step: int = 1) -> int:
        """Wait until a training has written a checkpoint of at least ``step``; returns its step."""
        folder = self.folder / spec.attempts / "work"

        def newest() -> int:
            steps = [int(path.name.split("-")[1]) for path in folder.rglob("step-*")]
            return max((number for number in steps if number >= step), default=0)

        return self.wait_for(newest, f"checkpoint of {spec.name}")


def windows(workflow: Workflow, specs: Iterable[Any]) -> list[tuple[tuple[str, str], float, float, str]]:
    """((node, GPU), start, end, stage) of every attempt, from the sidecars and SLURM's own record of its jobs."""
    places = {job["JobId"]: job["NodeList"] for job in workflow.cluster.jobs()}
    found = []
    for spec in specs:
        for attempt in workflow.sidecar(spec).attempts:
            # every node of the test cluster has one GPU
            device = (places[attempt.slurm_job_id], "gpu0")
            found.append((device, attempt.start_mono_s, attempt.end_mono_s, spec.name))
    return found


def overlaps(found: list[tuple[tuple[str, str], float, float, str]]) -> list[tuple[str, str]]:
    """Pairs of stages that were measured on one device at the same time."""
    pairs = []
    for number, (device, start, end, name) in enumerate(found):
        for other_device, other_start, other_end, other in found[number + 1 :]:
            if device == other_device and max(start, other_start) < min(end, other_end):
                pairs.append((name, other))
    return pairs


def dump(value: Any) -> str:
    """For assertion messages."""
    return json.dumps(value, indent=1, default=str)
