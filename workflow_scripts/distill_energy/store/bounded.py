"""Parquet files that may come from elsewhere: their size is read off the footer before anything is decompressed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import UserError

#: A file may inflate to this many times its size, or to ``ALWAYS`` bytes. 5,663 files that our stages and tests wrote
#: reached 11 (2026-11-27).
RATIO, ALWAYS = 100, 64 << 20


def problem(metadata: Any, size: int) -> str | None:
    """What is wrong with the sizes that a Parquet footer states, in words; ``size``: bytes of the file."""
    whole = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for column in range(row_group.num_columns):
            chunk = row_group.column(column)
            if chunk.total_uncompressed_size < 0 or not 0 <= chunk.total_compressed_size <= size:
                return "its footer states impossible sizes"
            whole += max(chunk.total_uncompressed_size, 8 * chunk.num_values)  # runs and dictionaries expand too
    if whole > max(RATIO * size, ALWAYS):
        return f"{size} bytes inflate to {whole}"
    return None


def check(path: str | Path, file: Any = None) -> None:
    """Raise UserError naming a Parquet file whose footer states sizes that no honest one has.

    ``file``: the open ``ParquetFile``, where there is one. A file that is no Parquet is its reader's to name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path) if file is None else file.metadata
        found = problem(metadata, os.stat(path).st_size)
    except (OSError, pa.ArrowException):
        return
    if found is not None:
        raise UserError(f"{path}: {found}; refused before it is read")
