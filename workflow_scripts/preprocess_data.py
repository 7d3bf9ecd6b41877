"""Rule preprocess_data: see ``distill_energy.data.stage``."""

from distill_energy.data.stage import main
from distill_energy.stage import run_stage

run_stage(snakemake, main)  # noqa: F821
