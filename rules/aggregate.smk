"""From sidecars to the answer: the ledger, N* from real reuse counts, figures and the page."""


# Seconds of work on small files: not worth a cluster job each.
localrules:
    aggregate,
    report,


# Name → title. One rule a figure, so that each has its caption in `snakemake --report`.
FIGURES = {
    "pareto": "Energy against quality",
    "stage_breakdown": "Energy by stage",
    "where_it_went": "Where every joule went",
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
        ledger=f"{ANSWER}/ledger.parquet",
        summary=f"{ANSWER}/summary.parquet",
        places=f"{ANSWER}/where_it_went.parquet",
        csv=report(
            f"{ANSWER}/summary.csv",
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
            ledger=f"{ANSWER}/ledger.parquet",
            summary=f"{ANSWER}/summary.parquet",
        output:
            pdf=report(
                f"{ANSWER}/{figure}.pdf",
                caption=f"../report/{figure}.rst",
                category="Figures",
                labels={"figure": title},
            ),
            png=f"{ANSWER}/{figure}.png",
            svg=f"{ANSWER}/{figure}.svg",
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
        ledger=f"{ANSWER}/ledger.parquet",
        summary=f"{ANSWER}/summary.parquet",
        figures=[f"{ANSWER}/{figure}.svg" for figure in (*FIGURES, "measured/forecast")],
    output:
        report(
            f"{ANSWER}/report.html",
            caption="../report/page.rst",
            category="The answer",
            labels={"page": "Report"},
        ),
    log:
        "logs/report.log",
    conda:
        ENVIRONMENT
    params:
        config=settings.model_dump(mode="json", exclude_unset=True),
    script:
        "../workflow_scripts/report.py"
