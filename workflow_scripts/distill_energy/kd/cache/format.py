"""A shard of the cache as a file: its name, its columns, its footer with a checksum, and reading it verified."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import UserError
from ...store import bounded

FOOTER_KEY = b"distill_energy.logit_cache"
COLUMNS = ["id", "tokens", "tail_total", "payload"]


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.parquet"


def footer_bytes(content: dict[str, Any]) -> bytes:
    """A footer that carries its own SHA-256 (Parquet's page checksums don't cover it)."""
    body = json.dumps(content, sort_keys=True, allow_nan=False)
    return json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body}).encode()


def parse_footer(raw: bytes | None, path: Path) -> dict[str, Any]:
    """Raises UserError naming ``path`` if the footer is missing or damaged."""
    try:
        outer = json.loads(raw or b"")
        body = outer["body"]
        if hashlib.sha256(body.encode()).hexdigest() != outer["sha256"]:
            raise ValueError("checksum of the footer differs")
        return json.loads(body)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a whole logit cache shard ({error})") from None


class Shard:
    """One open shard. Every page's checksum is verified when it is read. Errors name the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = pq.ParquetFile(path, page_checksum_verification=True, memory_map=True)
            metadata = self.file.metadata.metadata or {}
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{path}: shard is corrupt or truncated ({error})") from None
        bounded.check(path, self.file)
        self.footer = parse_footer(metadata.get(FOOTER_KEY), path)
        if self.file.metadata.num_rows != self.footer["rows"]:
            raise UserError(f"{path}: {self.file.metadata.num_rows} rows, its footer says {self.footer['rows']}")

    def read(self, group: int, columns: list[str] | None = None):
        """One row group as a table. Raises UserError naming the shard."""
        columns = columns or COLUMNS
        try:
            table = self.file.read_row_group(group, columns=columns, use_threads=False)
            if table.column_names != columns:
                raise ValueError(f"columns {table.column_names}")
            return table
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{self.path}: shard is corrupt or truncated ({error})") from None

    @property
    def groups(self) -> int:
        return self.file.metadata.num_row_groups

    def verify(self) -> None:
        """Read every page, so that its checksum is verified."""
        for group in range(self.groups):
            self.read(group)
