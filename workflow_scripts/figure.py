"""Rule figure: one module a figure, see ``distill_energy.report.figures``."""

from distill_energy.report.figures import render
from distill_energy.stage import logged

with logged(snakemake):  # noqa: F821
    render(
        snakemake.params.figure,  # noqa: F821
        snakemake.input.ledger,  # noqa: F821
        snakemake.input.summary,  # noqa: F821
        snakemake.output.pdf,  # noqa: F821
        snakemake.output.png,  # noqa: F821
    )
