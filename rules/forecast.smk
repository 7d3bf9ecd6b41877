"""What it would cost, before it is spent; and beside the measurement, after. The published table, replayed."""


localrules:
    forecast,
    forecast_check,
    paper,


rule forecast:
    input:
        [ancient(node.sidecar) for node in plan.of("prerun")],
    output:
        pdf=report(
            "results/forecast.pdf",
            caption="../report/forecast.rst",
            category="Figures",
            labels={"figure": "Forecast"},
        ),
        png="results/forecast.png",
        csv="results/forecast.csv",
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
        ledger="results/ledger.parquet",
    output:
        pdf=report(
            "results/measured/forecast.pdf",
            caption="../report/forecast.rst",
            category="Figures",
            labels={"figure": "Forecast beside the measurement"},
        ),
        png="results/measured/forecast.png",
        csv="results/measured/forecast.csv",
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
            "comparison.csv",
        ),
    log:
        "logs/paper.log",
    conda:
        ENVIRONMENT
    script:
        "../workflow_scripts/paper.py"
