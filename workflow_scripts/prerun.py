"""Rule prerun: see ``distill_energy.prerun``."""

from distill_energy.prerun import main
from distill_energy.stage import run_stage

run_stage(snakemake, main)  # noqa: F821
