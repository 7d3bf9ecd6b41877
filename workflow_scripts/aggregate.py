"""Rule aggregate: see ``distill_energy.answer.aggregate``."""

from distill_energy.answer.aggregate import main
from distill_energy.stage import logged

with logged(snakemake) as log:  # noqa: F821
    main(
        "results",
        dict(snakemake.output.items()),  # noqa: F821
        current=snakemake.params.current,  # noqa: F821
        config=snakemake.params.config,  # noqa: F821
        roots=snakemake.params.roots,  # noqa: F821
        plan_labels=snakemake.params.labels,  # noqa: F821
        log=log,
    )
