"""Rule contamination: see ``distill_energy.evaluate.contamination``."""

from distill_energy.stage import run_stage

run_stage(snakemake)  # noqa: F821
