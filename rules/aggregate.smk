"""From sidecars to the answer: the ledger, N* from real reuse counts, figures and the page."""


# Seconds of work on small files: not worth a cluster job each.
localrules:
    aggregate,
    figure,
    report,


FIGURES = [
    "pareto",
    "stage_breakdown",
    "amortization",
    "trajectories",
    "sweep",
    "power",
]


rule aggregate:
    input:
        sidecars=plan.sidecars,
        config=workflow.configfiles,
    output:
        ledger="results/ledger.parquet",
        summary="results/summary.parquet",
        csv="results/summary.csv",
    log:
        "logs/aggregate.log",
    conda:
        ENVIRONMENT
    params:
        current=[list(key) for key in plan.nodes],
        labels={"/".join(key): node.labels for key, node in plan.nodes.items()},
        config=settings.model_dump(mode="json"),
        roots=[settings.teacher_store] if settings.teacher_store else [],
    script:
        "../workflow_scripts/aggregate.py"


rule figure:
    input:
        ledger="results/ledger.parquet",
        summary="results/summary.parquet",
    output:
        pdf="results/{figure}.pdf",
        png="results/{figure}.png",
    log:
        "logs/figure-{figure}.log",
    wildcard_constraints:
        figure="|".join(FIGURES),
    conda:
        ENVIRONMENT
    script:
        "../workflow_scripts/figure.py"


rule report:
    input:
        ledger="results/ledger.parquet",
        summary="results/summary.parquet",
        figures=expand("results/{figure}.png", figure=FIGURES)
        + ["results/measured/forecast.png"],
    output:
        "results/report.html",
    log:
        "logs/report.log",
    conda:
        ENVIRONMENT
    script:
        "../workflow_scripts/report.py"
