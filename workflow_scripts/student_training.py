"""Rule student_training: see ``distill_energy.train.stage``."""

from distill_energy.stage import run_stage

run_stage(snakemake)  # noqa: F821
