"""Models converted to a plain folder; data sets made or loaded, templated, tokenised, labelled."""


rule preprocess_model:
    input:
        consumed("preprocess"),
    output:
        **artifact("results", "preprocess"),
    log:
        "logs/preprocess/{name}/{version}.log",
    wildcard_constraints:
        name="model-[^/]+",
    conda:
        ENVIRONMENT
    threads: workflow.cores or 1
    resources:
        meter=1,
    params:
        spec=spec("preprocess"),
    script:
        "../workflow_scripts/preprocess_model.py"


rule preprocess_data:
    input:
        consumed("preprocess"),
    output:
        **artifact("results", "preprocess"),
    log:
        "logs/preprocess/{name}/{version}.log",
    wildcard_constraints:
        name="data-[^/]+",
    conda:
        ENVIRONMENT
    threads: workflow.cores or 1
    resources:
        meter=1,
    params:
        spec=spec("preprocess"),
    script:
        "../workflow_scripts/preprocess_data.py"
