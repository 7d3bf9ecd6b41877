"""Rule preprocess_model: see ``distill_energy.models.stage``."""

from distill_energy.stage import run_stage

run_stage(snakemake)  # noqa: F821
