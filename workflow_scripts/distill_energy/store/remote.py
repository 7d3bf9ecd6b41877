"""A teacher store on object storage: ``teacher_store: s3://bucket/prefix``, or any other URL that fsspec knows.

Objects lie there as a local store's files do (``<stage>/<name>/<version>/…``, ``consumers/…``), so one can be copied to
the other. A workflow works on a mirror below its results: sidecars and power traces are pulled when it is planned,
other files when a stage reads them, each verified. What it makes itself is pushed, ``energy.json`` last, so that a
push that was killed leaves nothing that anybody takes for an artifact.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import UserError
from . import atomic, bounded
from .lock import artifact_lock
from .sidecar import POWER_NAME, SIDECAR_NAME, TEACHER_STAGES, Produced, Sidecar, dump, parse, read
from .teacher_store import copies

Key = tuple[str, str, str]  # stage, name, version
MARKER = "distill-energy-store.txt"
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


def is_remote(store: str | None) -> bool:
    """Whether a ``teacher_store`` is a URL rather than a folder."""
    return store is not None and "://" in store


def local_root(store: str | None, root: str = "results") -> str:
    """Where this workflow has its teacher artifacts: in ``root``, in the store's folder, or in the mirror of a URL."""
    if store is None or not is_remote(store):
        return store or root
    return _own(store, root)


def receipts(store: str | None, root: str = "results") -> str | None:
    """Where this workflow keeps copies of the sidecars of a store's folder; None where it has no such store."""
    return None if store is None or is_remote(store) else _own(store, root)


def _own(store: str, root: str) -> str:
    return f"{root}/teacher_store/{hashlib.sha256(store.rstrip('/').encode()).hexdigest()[:8]}"


class Remote:
    """One store and its mirror. Every method raises UserError in one line, naming the URL, if the store cannot be
    reached or an object is not what it should be."""

    def __init__(self, url: str, mirror: str | Path) -> None:
        self.url, self.mirror = url.rstrip("/"), Path(mirror)
        self.fs, self.base = _open(self.url)

    def prepare(self) -> None:
        """Show that the store can be written to, before a stage spends energy on what it could not share."""
        self._write(MARKER, "A teacher store of distill-energy: artifacts and, under consumers/, who read them.\n")

    def refresh(self, keys: Iterable[Key]) -> None:
        """Pull the sidecars and power traces that the store has and the mirror lacks."""
        for key in keys:
            if not (self.mirror.joinpath(*key) / SIDECAR_NAME).exists():
                self.take(key)

    def take(self, key: Key) -> Sidecar | None:
        """Pull sidecar and power trace of one artifact; None if the store has no such artifact."""
        place, folder = "/".join(key), self.mirror.joinpath(*key)
        text = self._read(f"{place}/{SIDECAR_NAME}")
        if text is None:
            return None
        record = parse(text, f"{self.url}/{place}/{SIDECAR_NAME}")
        if (record.stage, record.name, record.version) != key:
            raise UserError(f"{self.url}/{place}: its sidecar is of {record.stage}/{record.name}/{record.version}")
        self._pull(f"{place}/{POWER_NAME}", folder / POWER_NAME)
        atomic.write_text(folder / SIDECAR_NAME, text)
        return record

    def lacking(self, key: Key) -> list[Produced]:
        """Files of an artifact in the mirror that are still to be pulled."""
        folder = self.mirror.joinpath(*key)
        record = read(folder / SIDECAR_NAME)
        return [item for item in record.produces if not _is_size(folder / item.path, item.bytes)]

    def fetch(self, key: Key, say: Callable[[str], None]) -> None:
        """Pull the files that the mirror lacks, and verify each by size and SHA-256."""
        with artifact_lock(self.mirror.joinpath("attempts", *key), say):  # on a cluster several may want it at once
            for item in self.lacking(key):
                if PurePosixPath(item.path).is_absolute() or ".." in PurePosixPath(item.path).parts:
                    raise UserError(f"{self.url}/{'/'.join(key)}: names a file outside the artifact, {item.path}")
                self._pull("/".join((*key, item.path)), self.mirror.joinpath(*key, item.path), item)

    def push(self, key: Key, record: Sidecar, say: Callable[[str], None]) -> None:
        """Copy an artifact of the mirror to the store, its sidecar last. Does nothing if the store has one."""
        place, folder = "/".join(key), self.mirror.joinpath(*key)
        if (text := self._read(f"{place}/{SIDECAR_NAME}")) is not None:
            if parse(text, f"{self.url}/{place}/{SIDECAR_NAME}").attempts[0].id != record.attempts[0].id:
                say(f"{self.url}/{place} was made by another workflow in the meantime; this one stays here")
            return
        for name in [*(item.path for item in record.produces), POWER_NAME]:
            with self._reaching(f"{place}/{name}"):
                self.fs.put_file(str(folder / name), f"{self.base}/{place}/{name}")
        self._write(f"{place}/{SIDECAR_NAME}", dump(record))

    def register(self, consumer: Sidecar, root: str | Path) -> None:
        """Leave a copy of a consumer's sidecar at each teacher artifact it read. Idempotent."""
        for name, text in copies(consumer, root):
            self._write(name, text)

    def pull_consumers(self) -> None:
        """Make the mirror's consumers, of the artifacts that it holds, those of the store."""
        for stage in TEACHER_STAGES:
            for sidecar in sorted(self.mirror.glob(f"{stage}/*/*/{SIDECAR_NAME}")):
                place = Path("consumers", *sidecar.parent.relative_to(self.mirror).parts)
                here = {path.name for path in (self.mirror / place).glob("*.json")}
                there = self._names(place.as_posix())
                for name in there:  # those here too: a run that was measured again has replaced its copy
                    self._pull(f"{place.as_posix()}/{name}", self.mirror / place / name)
                for name in here - there:
                    (self.mirror / place / name).unlink()

    # --- objects -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # each kind of store has errors of its own
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.url}/{name}: {type(error).__name__}: {what}") from None

    def _read(self, name: str) -> str | None:
        """Text of an object; None only if the store says that there is none."""
        with self._reaching(name):
            try:
                return self.fs.cat_file(f"{self.base}/{name}").decode()
            except FileNotFoundError:
                return None

    def _write(self, name: str, text: str) -> None:
        """Write a small object so that no reader ever sees half of it, on a file system too."""
        path = f"{self.base}/{name}"
        with self._reaching(name):
            self.fs.pipe_file(f"{path}.{os.getpid()}.tmp", text.encode())
            self.fs.mv(f"{path}.{os.getpid()}.tmp", path)

    def _pull(self, name: str, path: Path, expected: Produced | None = None) -> None:
        with self._reaching(name), atomic.replacing(path) as temporary:
            self.fs.get_file(f"{self.base}/{name}", str(temporary))
            if expected is None:
                return
            if temporary.stat().st_size != expected.bytes:
                problem = f"has {temporary.stat().st_size} bytes, its sidecar says {expected.bytes}"
            elif atomic.sha256(temporary) != expected.sha256:
                problem = "differs from the hash in its sidecar"
            else:
                if path.suffix == ".parquet":
                    bounded.check(temporary)
                return
            remedy = f"remove the artifact's {SIDECAR_NAME} there and in {self.mirror} to have it made again"
            raise UserError(f"{self.url}/{name}: {problem}; {remedy}")

    def _names(self, place: str) -> set[str]:
        with self._reaching(place):
            try:
                found = self.fs.ls(f"{self.base}/{place}", detail=False)
            except FileNotFoundError:
                return set()
        return {name for path in found if (name := path.rsplit("/", 1)[-1]).endswith(".json")}


def _is_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _open(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. Credentials and endpoints come from the environment."""
    import fsspec

    protocol = url.partition("://")[0]
    options = {"auto_mkdir": True} if protocol in ("file", "local") else {"use_listings_cache": False}
    try:
        return fsspec.core.url_to_fs(url, **options)
    except ImportError:
        raise UserError(f"teacher_store {url}: needs the package {PACKAGES.get(protocol, protocol)}") from None
    except ValueError as error:
        raise UserError(f"teacher_store {url}: {error}") from None


def synced(url: str, root: str | Path) -> str:
    """The mirror of a store below ``root``, with the consumers that the store knows now."""
    remote = Remote(url, local_root(url, str(root)))
    remote.pull_consumers()
    return str(remote.mirror)
