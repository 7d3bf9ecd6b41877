"""From sidecars to the answer: the ledger, N* from real reuse counts, figures and the page."""


# Seconds of work on small files: not worth a cluster job each.
localrules:
    aggregate,
    report,


# Name → title. One rule a figure, so that each has its caption in `snakemake --report`.
FIGURES = {
    "pareto": "Energy against quality",
    "stage_breakdown": "Where the energy went",
    "amortization": "What reuse does",
    "trajectories": "Energy to quality",
    "sweep": "Sweeps",
    "power": "Power over time",
}


rule aggregate:
    input:
        sidecars=plan.sidecars,
        config=workflow.configfiles,
    output:
        ledger="results/ledger.parquet",
        summary="results/summary.parquet",
        places="results/where_it_went.parquet",
        csv=report(
            "results/summary.csv",
            caption="../report/summary.rst",
            category="Tables",
            labels={"table": "Summary"},
        ),
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


for figure, title in FIGURES.items():

    rule:
        name:
            f"figure_{figure}"
        input:
            ledger="results/ledger.parquet",
            summary="results/summary.parquet",
        output:
            pdf=report(
                f"results/{figure}.pdf",
                caption=f"../report/{figure}.rst",
                category="Figures",
                labels={"figure": title},
            ),
            png=f"results/{figure}.png",
        log:
            f"logs/figure-{figure}.log",
        localrule: True
        conda:
            ENVIRONMENT
        params:
            figure=figure,
        script:
            "../workflow_scripts/figure.py"


rule report:
    input:
        ledger="results/ledger.parquet",
        summary="results/summary.parquet",
        figures=expand("results/{figure}.png", figure=FIGURES)
        + ["results/measured/forecast.png"],
    output:
        report(
            "results/report.html",
            caption="../report/page.rst",
            category="The answer",
            labels={"page": "Report"},
        ),
    log:
        "logs/report.log",
    conda:
        ENVIRONMENT
    script:
        "../workflow_scripts/report.py"
