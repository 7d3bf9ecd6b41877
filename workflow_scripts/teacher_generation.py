"""Rule teacher_generation: see ``distill_energy.teacher.generation``."""

from distill_energy.stage import run_stage

run_stage(snakemake)  # noqa: F821
