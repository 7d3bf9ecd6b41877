"""Rule paper: the published stage table through the same accounting, see ``distill_energy.report.paper``."""

from distill_energy.report.paper import write_paper
from distill_energy.stage import logged

with logged(snakemake):  # noqa: F821
    write_paper(snakemake.input[0], "results/paper")  # noqa: F821
