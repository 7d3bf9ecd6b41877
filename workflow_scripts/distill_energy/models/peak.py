"""The peak of a host, and the share of it that a stage's operations reached."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Dense 16-bit FLOP/s of an accelerator's matrix units by what its name holds, the most particular first
#: (manufacturers' data sheets, without sparsity).
PEAKS: tuple[tuple[str, float], ...] = (
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("A40", 150e12),
    ("V100", 125e12),
    ("T4", 65e12),
)


def peak_of(names: Sequence[str | None]) -> float | None:
    """FLOP/s of all of these accelerators together; None where there is none, or one is not in the table."""
    found = [next((peak for part, peak in PEAKS if re.search(rf"\b{part}\b", name or "")), None) for name in names]
    return None if not found or None in found else sum(found)


def calibrated(prerun: Path | None) -> tuple[float, str] | None:
    """(FLOP/s, what it is) of the matrix product that this host's prerun timed."""
    path = None if prerun is None else Path(prerun) / "calibration.parquet"
    if path is None or not path.is_file():
        return None
    import pyarrow.parquet as pq

    rows = [row for row in pq.read_table(path).to_pylist() if row["flops_per_s"]]
    return (rows[0]["flops_per_s"], f"this host's own matrix product in {rows[0]['dtype']}") if rows else None


def reached(
    flops: float | None, seconds: float | None, gpus: Sequence[str | None], prerun: Path | None
) -> dict[str, Any]:
    """For a sidecar's results: ``flop_per_s`` over the stage's whole time, the peak, and ``utilisation``, its share.

    The peak is the data sheet's where the accelerators are known, else what a matrix product reached in the prerun.
    """
    if not flops or not seconds:
        return {}
    rate = flops / seconds
    if (peak := peak_of(gpus)) is not None:
        source = "data sheet, dense 16-bit"
    elif (found := calibrated(prerun)) is not None:
        peak, source = found
    else:
        reason = "no data sheet's peak is known, and no prerun timed a matrix product"
        return {"flop_per_s": rate, "utilisation": None, "utilisation_reason": reason}
    return {"flop_per_s": rate, "peak_flop_per_s": peak, "peak_source": source, "utilisation": rate / peak}
