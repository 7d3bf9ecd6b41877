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
        "results/pareto.pdf",
        "results/stage_breakdown.pdf",
        "results/amortization.pdf",
        "results/ledger.parquet",
        "results/summary.parquet",
        "results/summary.csv",
        "results/forecast.pdf",
        "results/report.html",
