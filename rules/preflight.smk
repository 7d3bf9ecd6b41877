"""What can be known to be wrong before anything is paid for: `snakemake preflight`, and before every start that pays."""

import json
import subprocess

from distill_energy.answer.experiments import register

# Rules whose work costs enough to be asked about first.
PAID = {"preprocess_data", "teacher_logits", "teacher_generation", "student_training"}


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


rule preflight:
    localrule: True
    run:
        preflight()
