"""What a job costs the workflow itself: plan and run many students whose stages do nothing.

    python benchmarks/many_students.py [--students 1000] [--jobs 2] [--plan-only] [--json FILE]

The real Snakefile and rules are used, in a temporary folder; only the stages' scripts are replaced by one that writes
its two outputs. So the figures are Snakemake's and the planner's share of a run: time and memory a job.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parent.parent
NO_OP = """\
from pathlib import Path

Path(snakemake.output.sidecar).write_text("{}")
Path(snakemake.output.power).write_bytes(b"")
"""
STAGES = (
    "prerun",
    "preprocess_model",
    "preprocess_data",
    "teacher_logits",
    "teacher_generation",
    "student_training",
    "evaluation",
)


def configuration(students: int) -> dict[str, Any]:
    """The tiny test configuration with that many students, distilled from one logit cache."""
    config = yaml.safe_load((REPO / "configs/smoke.yaml").read_text())
    names = [f"student{number:05d}" for number in range(students)]
    config["models"] |= {name: {"source": "pruned", "of": "big", "layers": 1 + i % 3} for i, name in enumerate(names)}
    config["students"] = names
    config["pipelines"] = {
        "sft": {"kind": "sft", "students": names[:1]},
        "kd": {"kind": "kd", "alpha": 0.3, "temperature": 2.0},
    }
    return config


def lay(folder: Path, students: int) -> Path:
    """Copy the workflow with no-op stages into ``folder``; returns the configuration's path."""
    shutil.copy(REPO / "Snakefile", folder)
    shutil.copytree(REPO / "rules", folder / "rules")
    for name in ("configs", "envs"):
        (folder / name).symlink_to(REPO / name)
    scripts = folder / "workflow_scripts"
    scripts.mkdir()
    (scripts / "distill_energy").symlink_to(REPO / "workflow_scripts" / "distill_energy")
    for stage in STAGES:
        (scripts / f"{stage}.py").write_text(NO_OP)
    path = folder / "many.yaml"
    path.write_text(yaml.safe_dump(configuration(students)))
    return path


def timed(command: list[str], folder: Path) -> dict[str, float]:
    """Run a command; wall seconds, its CPU seconds and peak memory in MB (of the largest process so far)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    wall = time.monotonic() - start
    if done.returncode:
        sys.exit(f"error: {' '.join(command[:4])} …\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "peak_mb": round(after.ru_maxrss / 1024, 1)}


def planning(config: Path) -> dict[str, float]:
    """Seconds of the planner alone, in this process, and the number of its stages."""
    sys.path.insert(0, str(REPO / "workflow_scripts"))
    from distill_energy.config import parse_config
    from distill_energy.plan import build_plan

    data = yaml.safe_load(config.read_text())
    start = time.monotonic()
    plan = build_plan(parse_config(data, config.name))
    return {"wall_s": round(time.monotonic() - start, 3), "stages": len(plan.nodes)}


def measure(students: int, jobs: int, plan_only: bool) -> dict[str, Any]:
    """The whole benchmark; see the module's docstring."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = lay(folder, students)
        report: dict[str, Any] = {"students": students, "planner": planning(config)}
        stages = report["planner"]["stages"]
        base = [
            sys.executable,
            "-m",
            "snakemake",
            "--configfile",
            config.name,
            "--cores",
            str(jobs),
            "--quiet",
            "progress",
        ]
        # every sidecar instead of the figures, which would need real ones
        (folder / "rules" / "aggregate.smk").write_text("rule sidecars:\n    input: plan.sidecars\n")
        snakefile = (folder / "Snakefile").read_text()
        (folder / "Snakefile").write_text(snakefile.split("rule all:")[0])
        base += ["--", "sidecars"]
        report["dry_run"] = timed([*base[:-2], "--dry-run", *base[-2:]], folder)
        if not plan_only:
            # one thread a job, or each would take all cores; the meter's limit is lifted, since nothing is measured
            options = ["--resources", f"meter={jobs}", "--max-threads", "1"]
            report["run"] = timed([*base[:-2], *options, *base[-2:]], folder)
            made = len(list(folder.glob("results/*/*/*/energy.json")))
            if made != stages:
                sys.exit(f"error: {made} of {stages} stages ran")
            report["second_dry_run"] = timed([*base[:-2], "--dry-run", *base[-2:]], folder)
        for key in ("dry_run", "run", "second_dry_run"):
            if key in report:
                report[key]["ms_a_job"] = round(1000 * report[key]["wall_s"] / stages, 2)
        return report


def main() -> None:
    parser = argparse.ArgumentParser(description="Plan and run many students whose stages do nothing.")
    parser.add_argument("--students", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2, help="jobs at once")
    parser.add_argument("--plan-only", action="store_true", help="do not run the no-op stages")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    report = measure(args.students, args.jobs, args.plan_only)
    text = json.dumps(report, indent=1)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
