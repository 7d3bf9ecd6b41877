"""Rule report: see ``distill_energy.report.page``."""

from distill_energy.report.page import main
from distill_energy.stage import logged

with logged(snakemake) as log:  # noqa: F821
    main(snakemake.input, snakemake.output[0], snakemake.params, log)  # noqa: F821
