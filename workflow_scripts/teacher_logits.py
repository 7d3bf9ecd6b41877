"""Rule teacher_logits: see ``distill_energy.teacher.logits``."""

from distill_energy.stage import run_stage
from distill_energy.teacher.logits import main

run_stage(snakemake, main)  # noqa: F821
