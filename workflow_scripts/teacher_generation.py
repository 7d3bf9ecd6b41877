"""Rule teacher_generation: see ``distill_energy.teacher.generation``."""

from distill_energy.stage import run_stage
from distill_energy.teacher.generation import main

run_stage(snakemake, main)  # noqa: F821
