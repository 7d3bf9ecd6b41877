"""An artifact's folder: what is in it, and whether it is whole."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from . import atomic, bounded, digests
from .sidecar import POWER_NAME, SIDECAR_NAME, Produced, Sidecar


def produced(folder: str | Path) -> list[Produced]:
    """Every file of the artifact (sidecar, power trace and temporary files left out), with size, hash and rows."""
    folder = Path(folder)
    files = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.startswith(".") or path.name in (SIDECAR_NAME, POWER_NAME):
            continue
        files.append(
            Produced(
                path=path.relative_to(folder).as_posix(),
                bytes=path.stat().st_size,
                sha256=atomic.sha256(path),
                rows=_rows(path),
            )
        )
    return files


def _rows(path: Path) -> int | None:
    if path.suffix != ".parquet":
        return None
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).metadata.num_rows


def damage(folder: str | Path, sidecar: Sidecar) -> str | None:
    """The first file that is missing or differs from the sidecar, in words; None if the artifact is whole."""
    folder = Path(folder)
    for item in sidecar.produces:
        path = folder / item.path
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != item.bytes:
            return f"{path} has {path.stat().st_size} bytes, its sidecar says {item.bytes}"
        if digests.sha256(path) != item.sha256:
            return f"{path} differs from the hash in its sidecar"
        if path.suffix == ".parquet":
            try:
                bounded.check(path)
            except UserError as error:
                return str(error)
    return None


def lacking(folder: str | Path, sidecar: Sidecar) -> str | None:
    """As ``damage``, by sizes alone."""
    for item in sidecar.produces:
        path = Path(folder) / item.path
        size = path.stat().st_size if path.is_file() else None
        if size != item.bytes:
            return f"{path}: {'missing' if size is None else f'{size} bytes'}, its sidecar says {item.bytes} bytes"
    return None
