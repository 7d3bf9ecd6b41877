"""Rule evaluation: see ``distill_energy.evaluate.stage``."""

from distill_energy.stage import run_stage

run_stage(snakemake)  # noqa: F821
