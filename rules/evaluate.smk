"""Evaluation: one artifact for each suite and model. Contamination: one for each suite and data set."""


rule contamination:
    input:
        consumed("contamination"),
    output:
        **artifact("results", "contamination"),
    log:
        "logs/contamination/{name}/{version}.log",
    conda:
        ENVIRONMENT
    threads: workflow.cores or 1
    resources:
        meter=1,
    params:
        spec=spec("contamination"),
    script:
        "../workflow_scripts/contamination.py"


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
