"""The plan, and what every measured rule shares."""

import json
import os
import subprocess
import sys
from pathlib import Path

from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

SCRIPTS = Path(workflow.basedir) / "workflow_scripts"
sys.path.insert(0, str(SCRIPTS))

from distill_energy.answer.experiments import register  # noqa: E402
from distill_energy.config import parse_config  # noqa: E402
from distill_energy.config.load import read_yaml  # noqa: E402
from distill_energy.energy import worker  # noqa: E402
from distill_energy.energy.co2 import co2e  # noqa: E402
from distill_energy.errors import UserError  # noqa: E402
from distill_energy.plan import build_plan  # noqa: E402
from distill_energy.plan.order import place_in_order  # noqa: E402
from distill_energy.store.remote import (
    Remote,
    is_remote,
    local_root,
    receipts,
)  # noqa: E402
from distill_energy.store.sidecar import TEACHER_STAGES  # noqa: E402
from distill_energy.store.teacher_store import refresh  # noqa: E402

# One measured stage at a time on a host: two on one device would share its joules. Set here and not only in a
# profile, since --resources on the command line replaces a profile's. Local, since each host has its own meter.
workflow.global_resources.setdefault("meter", 1)


resource_scopes:
    meter="local",
    gpu="local",


wildcard_constraints:
    name=r"[^/]+",
    version=r"[0-9a-f]{12}",


try:
    for path in workflow.configfiles:
        read_yaml(path)  # what YAML takes silently, such as a key given twice
    origin = ", ".join(map(str, workflow.configfiles)) or "config"
    settings = parse_config(config, origin)
    grid = settings.energy.grid
    if grid.country or grid.region:  # a wrong one is said before anything is measured
        co2e(None, country=grid.country, region=grid.region)
    plan = build_plan(settings)
    # Where Snakemake finds the teacher's artifacts.
    TEACHER_ROOT = receipts(settings.teacher_store) or local_root(
        settings.teacher_store
    )
    # What a shared store has already is not planned again. Jobs find it here: in the mirror, or as copied sidecars.
    if settings.teacher_store and workflow.is_main_process:
        shared = [spec.key for stage in TEACHER_STAGES for spec in plan.of(stage)]
        if is_remote(settings.teacher_store):
            Remote(settings.teacher_store, TEACHER_ROOT).refresh(shared)
        else:
            refresh(settings.teacher_store, TEACHER_ROOT, shared)
except UserError as error:
    raise WorkflowError(str(error)) from None


def said_once(record, said=[]):
    """A filter of log records: Snakemake prints its statistics before and after a dry run."""
    if getattr(record, "event", None) == LogEvent.RUN_INFO:
        said.append(record)
    return len(said) < 2 or record is not said[-1]


logger.addFilter(said_once)

# The environment of every job under --sdm conda: cpu (default) or cuda.
ENVIRONMENT = f"../envs/{os.environ.get('DISTILL_ENERGY_ENV', 'cpu')}.yaml"

# Where this study's answer lies: artifacts are shared by version, answers are not.
ANSWER = (
    f"results/experiments/{settings.experiment}" if settings.experiment else "results"
)

if settings.warm_worker and workflow.is_main_process:
    os.environ[worker.OWNER] = worker.owned_by(os.getpid(), ANSWER)


def artifact(root, stage):
    """What a measured job writes: the sidecar, which commits the artifact, and the power trace. Of a store's folder
    the copy of the sidecar alone, since Snakemake removes outputs, and others read what lies there.
    """
    folder = f"{root}/{stage}/{{name}}/{{version}}"
    if root == receipts(settings.teacher_store):
        return {"sidecar": f"{folder}/energy.json"}
    return {"sidecar": f"{folder}/energy.json", "power": f"{folder}/power.parquet"}


def spec(stage):
    """Params function: the stage's resolved spec as JSON."""
    return lambda wildcards: plan.spec(
        stage, wildcards.name, wildcards.version
    ).to_json()


def order(stage):
    """Priority function: a number drawn from energy.order_seed and the version, so that it stays over restarts."""
    seed = settings.energy.order_seed
    return lambda wildcards: place_in_order(seed, f"{stage}/{wildcards.version}")


def consumed(stage):
    """Input function: the sidecars of what the stage reads. Identity is in their paths, so their times don't count.

    A teacher's artifact that is there needs none that is not: from a store it serves a workflow that has nothing yet.
    """

    def sidecars(wildcards):
        node = plan.spec(stage, wildcards.name, wildcards.version)
        found = [plan.spec(i.stage, i.name, i.version).sidecar for i in node.consumes]
        if stage in TEACHER_STAGES and os.path.exists(node.sidecar):
            found = [path for path in found if os.path.exists(path)]
        return [ancient(path) for path in found]

    return sidecars


# Rules whose work costs enough to be asked about first.
PAID = {
    "preprocess_data",
    "teacher_logits",
    "teacher_generation",
    "reference_logprobs",
    "student_training",
}


def preflight():
    """Exit with a line for each thing that is wrong. A process of its own: Snakemake itself loads no torch."""
    done = subprocess.run(
        [sys.executable, "-m", "distill_energy", "preflight", "-"],
        input=json.dumps(settings.model_dump(mode="json")),
        text=True,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        check=False,
    )
    if done.returncode:
        raise WorkflowError("preflight: the study cannot be made as configured")


onstart:
    # Said before the first job, so that another study's answer does not take these runs for abandoned ones.
    register(ANSWER, plan.nodes)
    if PAID & {job.rule.name for job in workflow.dag.needrun_jobs()}:
        preflight()
