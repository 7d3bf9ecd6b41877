"""Rule student_training: see ``distill_energy.train.stage``."""

from distill_energy.stage import run_stage
from distill_energy.train.stage import main

run_stage(snakemake, main)  # noqa: F821
