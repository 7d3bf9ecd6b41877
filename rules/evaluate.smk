"""Evaluation: one artifact for each suite and model."""


rule evaluation:
    input:
        consumed("evaluation"),
    output:
        **artifact("results", "evaluation"),
    log:
        "logs/evaluation/{name}/{version}.log",
    priority: order("evaluation")
    conda:
        ENVIRONMENT
    threads: workflow.cores or 1
    resources:
        meter=1,
    params:
        spec=spec("evaluation"),
    script:
        "../workflow_scripts/evaluation.py"
