"""Students: one rule and one loop for every pipeline."""


rule student_training:
    input:
        consumed("student_training"),
    output:
        **artifact("results", "student_training"),
    log:
        "logs/student_training/{name}/{version}.log",
    priority: order("student_training")
    conda:
        ENVIRONMENT
    threads: workflow.cores or 1
    resources:
        meter=1,
    params:
        spec=spec("student_training"),
    script:
        "../workflow_scripts/student_training.py"
