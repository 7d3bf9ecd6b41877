"""Reading the many small Parquet files of artifacts: no threads, no read-ahead, which cost more than they save here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def columns_of(path: str | Path, columns: Sequence[str] | None = None) -> dict[str, list[Any]] | None:
    """Column name → values; None if the file is absent, not whole, or lacks a column."""
    table = table_of(path, columns)
    return None if table is None else table.to_pydict()


def table_of(path: str | Path, columns: Sequence[str] | None = None, dictionaries: Sequence[str] = ()):
    """The Arrow table; None if the file is absent, not whole, or lacks a column. ``dictionaries``: text columns of few
    values, read as codes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pa.OSFile(str(path)) as source:
            file = pq.ParquetFile(source, pre_buffer=False, read_dictionary=list(dictionaries))
            table = file.read(columns=columns, use_threads=False)
    except (OSError, pa.ArrowException):
        return None
    return None if columns is not None and set(columns) - set(table.column_names) else table


def rows_of(path: str | Path) -> list[dict[str, Any]] | None:
    """The rows as dicts; None if the file is absent or not whole."""
    columns = columns_of(path)
    if columns is None:
        return None
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
