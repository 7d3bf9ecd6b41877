"""Rule preprocess_data: see ``distill_energy.data.stage``."""

from distill_energy.stage import run_stage

run_stage(snakemake)  # noqa: F821
