"""Rule teacher_logits: see ``distill_energy.teacher.logits``."""

from distill_energy.stage import run_stage

run_stage(snakemake)  # noqa: F821
