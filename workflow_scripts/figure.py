"""Rule figure: one module a figure, see ``distill_energy.report.figures``."""

from importlib import import_module

from distill_energy.accounting.aggregate import read_summary
from distill_energy.stage import logged

with logged(snakemake):  # noqa: F821
    figure = import_module(f"distill_energy.report.figures.{snakemake.wildcards.figure}")  # noqa: F821
    figure.draw(read_summary(snakemake.input.summary), snakemake.output.pdf, snakemake.output.png)  # noqa: F821
