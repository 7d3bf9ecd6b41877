"""``power.parquet``: the trace behind an artifact's joules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..store import atomic
from . import journal
from .attempts import UNSAVED


def write_power(attempts_dir: str | Path, path: str | Path) -> None:
    """Write the trace of every attempt under ``attempts_dir``.

    Columns: ``attempt``, ``mono_s`` (monotonic seconds of that host's boot), ``utc`` (microseconds), ``component``,
    ``device``, ``watts`` (null where the device has no power reading), ``counter_j`` (the device's own counter in J,
    raw: wraps are visible).
    """
    import pyarrow as pa

    columns: dict[str, list[Any]] = {name: [] for name in _KINDS}
    for file in sorted(Path(attempts_dir).glob(f"*/{journal.NAME}")):
        records, _ = journal.read(file)
        before = {name: len(values) for name, values in columns.items()}
        try:
            _append(columns, records + UNSAVED.get(file.resolve(), []))
        except journal.DAMAGED:
            # damaged: the attempt says so (see ``attempts``), and its trace is left out
            for name, values in columns.items():
                del values[before[name] :]
    schema = pa.schema([(name, _kind(kind)) for name, kind in _KINDS.items()])
    atomic.write_parquet(path, pa.table(columns, schema=schema))


_KINDS = {
    "attempt": "string",
    "mono_s": "float64",
    "utc": "timestamp",
    "component": "string",
    "device": "string",
    "watts": "float64",
    "counter_j": "float64",
}


def _kind(name: str) -> Any:
    import pyarrow as pa

    return {"string": pa.string(), "float64": pa.float64(), "timestamp": pa.timestamp("us", tz="UTC")}[name]


def _append(columns: dict[str, list[Any]], records: Sequence[dict[str, Any]]) -> None:
    opened = next((r for r in records if r["r"] == "open"), None)
    go = next((r for r in records if r["r"] == "go"), None)
    if opened is None or go is None:
        return
    for record in records:
        if record["r"] != "tick" or record["t"] < go["t"]:
            continue
        for device, value in zip(opened["devices"], record["v"], strict=False):
            t = value[3] if len(value) > 3 else record["t"]
            columns["attempt"].append(opened["attempt"]["id"])
            columns["mono_s"].append(t)
            columns["utc"].append(round((record["u"] + t - record["t"]) * 1e6))
            columns["component"].append(device["component"])
            columns["device"].append(device["device"])
            columns["watts"].append(None if value[1] is None else value[1] * 1e-3)
            columns["counter_j"].append(None if value[0] is None else value[0] * device["unit"])
