"""Rule preprocess_model: see ``distill_energy.models.stage``."""

from distill_energy.models.stage import main
from distill_energy.stage import run_stage

run_stage(snakemake, main)  # noqa: F821
