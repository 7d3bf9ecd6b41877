"""Does distilling a language model save energy, once everything is counted?

    snakemake --cores all results/pareto.pdf

config.yaml → plan → stages → artifacts with energy sidecars → ledger → answer (docs/architecture.md).
"""

from snakemake.utils import min_version

min_version("9.0")


report: "report/workflow.rst"


# A configuration given with --configfile stands alone: Snakemake would merge it into this one key by key.
if not workflow.overwrite_configfiles:

    configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/preflight.smk"
include: "rules/prerun.smk"
include: "rules/preprocess.smk"
include: "rules/teacher.smk"
include: "rules/student.smk"
include: "rules/evaluate.smk"
include: "rules/aggregate.smk"
include: "rules/forecast.smk"


rule all:
    default_target: True
    input:
        f"{ANSWER}/pareto.pdf",
        f"{ANSWER}/stage_breakdown.pdf",
        f"{ANSWER}/amortization.pdf",
        f"{ANSWER}/ledger.parquet",
        f"{ANSWER}/summary.parquet",
        f"{ANSWER}/summary.csv",
        f"{ANSWER}/forecast.pdf",
        f"{ANSWER}/report.html",


# The answer and its page, wherever the configuration has them.
rule answer:
    input:
        f"{ANSWER}/pareto.pdf",
        f"{ANSWER}/report.html",
