"""Rule prerun: see ``distill_energy.prerun``."""

from distill_energy.stage import run_stage

run_stage(snakemake)  # noqa: F821
