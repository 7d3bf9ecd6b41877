"""Figures, one file each: ``draw(rows, pdf, png)`` from the ledger's or the summary's rows."""
