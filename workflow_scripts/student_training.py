"""Rule student_training: see ``distill_energy.train.stage``."""

from distill_energy.train.stage import main

from distill_energy.stage import run_stage

run_stage(snakemake, main)  # noqa: F821
