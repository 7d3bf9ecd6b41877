"""Reading the many small Parquet files of artifacts: no threads, no read-ahead, which cost more than they save here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from ..store import bounded


def columns_of(path: str | Path, columns: Sequence[str] | None = None) -> dict[str, list[Any]] | None:
    """Column name → values, of those of ``columns`` that the file has; None if it is absent or not whole."""
    table = table_of(path, columns)
    return None if table is None else table.to_pydict()


def table_of(path: str | Path, columns: Sequence[str] | None = None, dictionaries: Sequence[str] = ()):
    """The Arrow table of those of ``columns`` that the file has (each costs time: name what is needed); None if the
    file is absent or not whole. ``dictionaries``: text columns of few values, read as codes."""
    try:
        with pa.OSFile(str(path)) as source:
            file = pq.ParquetFile(source, pre_buffer=False, read_dictionary=list(dictionaries))
            bounded.check(path, file)
            return file.read(columns=columns, use_threads=False)
    except (OSError, pa.ArrowException, UserError):
        return None


def rows_of(path: str | Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]] | None:
    """The rows as dicts of those of ``columns`` that the file has; None if it is absent or not whole."""
    found = columns_of(path, columns)
    if found is None:
        return None
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
