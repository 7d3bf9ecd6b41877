"""Rules forecast and forecast_check: see ``distill_energy.report.forecast``."""

from distill_energy.config import parse_config
from distill_energy.report.forecast import make, write
from distill_energy.stage import logged

with logged(snakemake):  # noqa: F821
    ledger = snakemake.input.get("ledger")  # noqa: F821
    result = make(parse_config(snakemake.params.config), "results", ledger=ledger)  # noqa: F821
    write(result, snakemake.output.pdf, snakemake.output.png, snakemake.output.csv)  # noqa: F821
