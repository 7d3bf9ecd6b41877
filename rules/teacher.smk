"""The teacher's artifacts: made once, reused by every student."""


rule teacher_logits:
    input:
        consumed("teacher_logits"),
    output:
        **artifact(TEACHER_ROOT, "teacher_logits"),
    log:
        "logs/teacher_logits/{name}/{version}.log",
    conda:
        ENVIRONMENT
    threads: workflow.cores or 1
    resources:
        meter=1,
    params:
        spec=spec("teacher_logits"),
    script:
        "../workflow_scripts/teacher_logits.py"


rule teacher_generation:
    input:
        consumed("teacher_generation"),
    output:
        **artifact(TEACHER_ROOT, "teacher_generation"),
    log:
        "logs/teacher_generation/{name}/{version}.log",
    conda:
        ENVIRONMENT
    threads: workflow.cores or 1
    resources:
        meter=1,
    params:
        spec=spec("teacher_generation"),
    script:
        "../workflow_scripts/teacher_generation.py"


rule reference_logprobs:
    input:
        consumed("reference_logprobs"),
    output:
        **artifact("results", "reference_logprobs"),
    log:
        "logs/reference_logprobs/{name}/{version}.log",
    conda:
        ENVIRONMENT
    threads: workflow.cores or 1
    resources:
        meter=1,
    params:
        spec=spec("reference_logprobs"),
    script:
        "../workflow_scripts/reference_logprobs.py"
