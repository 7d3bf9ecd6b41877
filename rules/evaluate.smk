"""Evaluation: one artifact for each suite and model."""


rule evaluation:
    input:
        consumed("evaluation"),
    output:
        **artifact("results", "evaluation"),
    params:
        spec=spec("evaluation"),
    log:
        "logs/evaluation/{name}/{version}.log",
    threads: workflow.cores or 1
    resources:
        meter=1,
    script:
        "../workflow_scripts/evaluation.py"
