"""What this host draws when idle and reaches under load; is it the right host?"""


rule prerun:
    input:
        consumed("prerun"),
    output:
        **artifact("results", "prerun"),
    log:
        "logs/prerun/{name}/{version}.log",
    conda:
        ENVIRONMENT
    threads: workflow.cores or 1
    resources:
        meter=1,
    params:
        spec=spec("prerun"),
    script:
        "../workflow_scripts/prerun.py"
