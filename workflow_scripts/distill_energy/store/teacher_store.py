"""A teacher store: a folder outside ``results/`` that several workflows share (a URL: see ``remote``).

Teacher artifacts live there as they would under ``results/``. A run that consumed one leaves a copy of its sidecar
under ``consumers/``, so that every workflow counts the reuse of all.

Snakemake removes a rule's outputs before it makes them, and after a failure. So that nobody finds a hole where others
work, it sees a workflow's own copies of the store's sidecars (receipts) and never a file of the store.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import UserError
from . import atomic
from .sidecar import SIDECAR_NAME, TEACHER_STAGES, Sidecar, dump, parse


def owner(root: str | Path) -> str:
    """What tells two workflows apart that trained the same run, each at its own cost: host and results folder."""
    return hashlib.sha256(f"{os.uname().nodename}:{os.path.realpath(root)}".encode()).hexdigest()[:12]


def copies(sidecar: Sidecar, root: str | Path) -> Iterator[tuple[str, str]]:
    """(path below the store, text) of the copy that a consumer leaves at each teacher artifact it read.

    A run that is measured again in the same results folder replaces its earlier copy.
    """
    for item in sidecar.consumes:
        if item.stage in TEACHER_STAGES:
            folder = f"consumers/{item.stage}/{item.name}/{item.version}"
            yield f"{folder}/{sidecar.version}-{owner(root)}.json", dump(sidecar)


def register(store: str | Path, sidecar: Sidecar, root: str | Path) -> list[Path]:
    """Leave a copy of a consumer's sidecar at each teacher artifact it read. Idempotent."""
    written = []
    for name, text in copies(sidecar, root):
        atomic.write_text(Path(store) / name, text)
        written.append(Path(store) / name)
    return written


def consumers(store: str | Path) -> Iterator[Path]:
    """Sidecar copies of every registered consumer."""
    yield from sorted((Path(store) / "consumers").glob("*/*/*/*.json"))


def refresh(store: str | Path, receipts: str | Path, keys: Iterable[tuple[str, str, str]]) -> None:
    """Make the receipts of those artifacts what the store says: new, changed, or gone where it has none.

    Raises UserError for a sidecar in the store that is no record, or another artifact's.
    """
    for key in keys:
        source, copy = (Path(root).joinpath(*key) / SIDECAR_NAME for root in (store, receipts))
        try:
            text = source.read_text(encoding="utf-8")
        except FileNotFoundError:
            copy.unlink(missing_ok=True)
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{source}: cannot be read ({error})") from None
        record = parse(text, str(source))
        if (record.stage, record.name, record.version) != key:
            raise UserError(f"{source}: is of {record.stage}/{record.name}/{record.version}")
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            atomic.write_text(copy, text)


@contextlib.contextmanager
def shared_modes(store: str | Path) -> Iterator[None]:
    """What is written meanwhile is the group's too where the store is (setgid, group-writable), whatever the umask."""
    try:
        mode = os.stat(store).st_mode
    except OSError:
        mode = 0
    if not (mode & stat.S_ISGID and mode & stat.S_IWGRP):
        yield
        return
    before = os.umask(0)
    os.umask(before & ~stat.S_IRWXG)
    try:
        yield
    finally:
        os.umask(before)


def check_writable(store: str | Path, folders: Iterable[str | Path]) -> None:
    """Show that this user can write in those folders of the store before anything is spent. Raises UserError."""
    for folder in map(Path, folders):
        try:
            with shared_modes(store):
                folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            if (lock := folder / "lock").exists() and not os.access(lock, os.W_OK):
                raise PermissionError(13, f"{lock.name} is another user's alone")
        except OSError as error:
            raise UserError(
                f"teacher_store {store}: {getpass.getuser()} cannot write to {folder} ({error.strerror}); for several "
                f"users it needs a group of theirs: chgrp -R GROUP {store}; chmod -R g+rwX {store}; "
                f"find {store} -type d -exec chmod g+s {{}} +"
            ) from None
