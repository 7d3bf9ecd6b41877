"""Local data files, read row by row as they are written: no type is inferred from other rows.

JSON lines (``.jsonl``, ``.ndjson``; ``.json`` also holds one list), CSV (every value a text) and Parquet; the first two
also compressed (``.gz``, ``.zst``).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from ..store import bounded

READERS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}


class Row(dict):
    """A row that knows where it stands: ``place`` is "file, row n"."""

    place: str

    def __init__(self, values: dict[str, Any], place: str) -> None:
        super().__init__(values)
        self.place = place


def kind_of(path: Path) -> str | None:
    """``json``, ``csv`` or ``parquet`` by the file's name, whatever its case; None for another kind of file."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        kind = READERS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return None if kind == "parquet" else kind
    return READERS.get(suffixes[-1]) if suffixes else None


def files_of(path: str) -> list[Path]:
    """Data files of a path: a file, a folder's data files, or a glob. Raises UserError if none or of unknown kinds."""
    place = Path(path).expanduser()
    if place.is_dir():
        found = sorted(p for p in place.rglob("*") if p.is_file() and kind_of(p))
    elif place.is_file():
        found = [place]
    else:
        found = sorted(p for p in place.parent.glob(place.name) if p.is_file())
    if not found:
        raise UserError(f"dataset files {path}: none found")
    unknown = [p.name for p in found if kind_of(p) is None]
    if unknown:
        raise UserError(f"dataset files {path}: {unknown[0]} is none of {', '.join(READERS)}, nor one with .gz or .zst")
    return found


def read_file(path: Path) -> Iterator[Row]:
    """Rows of one file. Raises UserError naming the file and the row."""
    kind = kind_of(path)
    read = {"json": _json, "csv": _csv, "parquet": _parquet}[kind]
    try:
        for number, values in enumerate(read(path), 1):
            place = f"{path}, row {number}"
            if not isinstance(values, dict):
                raise UserError(f"{place}: not an object of fields but {_kind(values)}")
            yield Row(values, place)
    except (OSError, pa.ArrowException, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}: {error})") from None


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _text(path: Path) -> io.TextIOWrapper:
    """The file as UTF-8 text, decompressed."""
    packing = COMPRESSED.get(path.suffix.lower())
    if packing is None:
        return open(path, encoding="utf-8-sig", newline="")
    return io.TextIOWrapper(pa.CompressedInputStream(pa.OSFile(str(path)), packing), encoding="utf-8-sig", newline="")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with _text(path) as handle:
        number = 0
        try:
            for line in handle:
                number += 1
                yield number, line
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number + 1}: not UTF-8 ({error.reason})") from None


def _json(path: Path) -> Iterator[Any]:
    head = next((line.lstrip() for _, line in _lines(path) if line.strip()), "")
    if head.startswith("["):
        text = "".join(line for _, line in _lines(path))
        yield from _parsed(text, f"{path}")
        return
    for number, line in _lines(path):
        if line.strip():
            yield _parsed(line, f"{path}, line {number}")


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error})") from None


def _csv(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(1 << 30)
    lines = (line for _, line in _lines(path))
    reader = csv.DictReader(lines, strict=True)
    for number, row in enumerate(reader, 1):
        if None in row or None in row.values():
            raise UserError(f"{path}, row {number}: {len(reader.fieldnames or ())} fields in the head, not in the row")
        yield row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        bounded.check(path, file)
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()
