"""What can be known to be wrong before anything is paid for: `snakemake preflight`, and before every start that pays."""


rule preflight:
    log:
        "logs/preflight.log",
    localrule: True
    run:
        preflight()
