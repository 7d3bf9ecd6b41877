"""Rule reference_logprobs: see ``distill_energy.train.logprobs``."""

from distill_energy.stage import run_stage

run_stage(snakemake)  # noqa: F821
