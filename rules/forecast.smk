"""What it would cost, before it is spent; and beside the measurement, after. The published table, replayed."""


localrules:
    forecast,
    forecast_check,
    paper,


rule forecast:
    input:
        prerun=[ancient(node.sidecar) for node in plan.of("prerun")],
        config=workflow.configfiles,
    output:
        pdf=report(
            f"{ANSWER}/forecast.pdf",
            caption="../report/forecast.rst",
            category="Figures",
            labels={"figure": "Forecast"},
        ),
        png=f"{ANSWER}/forecast.png",
        svg=f"{ANSWER}/forecast.svg",
        csv=f"{ANSWER}/forecast.csv",
    log:
        "logs/forecast.log",
    conda:
        ENVIRONMENT
    params:
        config=settings.model_dump(mode="json"),
    script:
        "../workflow_scripts/forecast.py"


rule forecast_check:
    input:
        ledger=f"{ANSWER}/ledger.parquet",
        config=workflow.configfiles,
    output:
        pdf=report(
            f"{ANSWER}/measured/forecast.pdf",
            caption="../report/forecast.rst",
            category="Figures",
            labels={"figure": "Forecast beside the measurement"},
        ),
        png=f"{ANSWER}/measured/forecast.png",
        svg=f"{ANSWER}/measured/forecast.svg",
        csv=f"{ANSWER}/measured/forecast.csv",
    log:
        "logs/forecast_check.log",
    conda:
        ENVIRONMENT
    params:
        config=settings.model_dump(mode="json"),
    script:
        "../workflow_scripts/forecast.py"


rule paper:
    input:
        workflow.source_path("../configs/paper_table.yaml"),
    output:
        multiext(
            "results/paper/",
            "pareto.pdf",
            "stage_breakdown.pdf",
            "amortization.pdf",
            "comparison.pdf",
            "comparison.csv",
            "efficiency.pdf",
            "efficiency.csv",
        ),
    log:
        "logs/paper.log",
    conda:
        ENVIRONMENT
    script:
        "../workflow_scripts/paper.py"
