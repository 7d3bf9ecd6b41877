"""Reading a cache: verified shards, rows by example id."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from .certificate import merge
from .codec import unpack, unpack_batch
from .format import COLUMNS, Shard, shard_name
from .rows import PackedRows
from .spec import CacheSpec

if TYPE_CHECKING:
    from .rows import TeacherRows


class CacheReader:
    """A complete cache in ``folder``.

    verify: read every page once and verify its checksum (about 1 GB/s) before anything runs; pages are verified again
    whenever they are read. memory_bytes bounds the row groups that are kept. Raises UserError that names the shard if
    one is missing, foreign, corrupt or truncated.
    """

    def __init__(self, folder: str | Path, verify: bool = True, memory_bytes: int = 128 << 20) -> None:
        self.folder = Path(folder)
        first = self.folder / shard_name(0)
        if not first.exists():
            raise UserError(f"{first}: no such shard; {self.folder} holds no logit cache")
        self.shards = [Shard(first)]
        head = self.shards[0].footer
        for index in range(1, head["shards"]):
            path = self.folder / shard_name(index)
            if not path.exists():
                raise UserError(f"{path}: shard {index + 1} of {head['shards']} is missing; the cache is not complete")
            self.shards.append(Shard(path))
        for index, shard in enumerate(self.shards):
            for key in ("spec", "provenance", "shards"):
                if shard.footer[key] != head[key]:
                    raise UserError(f"{shard.path}: belongs to another cache than {first.name} ({key} differs)")
            if shard.footer["shard"] != index:
                raise UserError(f"{shard.path}: is shard {shard.footer['shard']}, not {index}")
        self.spec = CacheSpec.from_json(head["spec"])
        self.provenance: dict[str, Any] = head["provenance"]
        self._place: dict[str, tuple[int, int, int]] = {}
        for index, shard in enumerate(self.shards):
            for group in range(shard.groups):
                names = shard.read(group, None if verify else ["id"])["id"].to_pylist()
                for row, name in enumerate(names):
                    self._place[name] = (index, group, row)
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._room, self._held = memory_bytes, 0
        self._lock = threading.Lock()

    @property
    def certificate(self) -> dict[str, Any]:
        """The quality certificate, merged over the shards' footers (see ``certificate.merge``)."""
        stats = [shard.footer["stats"] for shard in self.shards]
        return merge(self.spec, stats, self.provenance, sum(shard.footer["payload_bytes"] for shard in self.shards))

    @property
    def ids(self) -> list[str]:
        """Ids in the order of the data."""
        return list(self._place)

    def __contains__(self, example_id: str) -> bool:
        return example_id in self._place

    def __len__(self) -> int:
        return len(self._place)

    def _group(self, key: tuple[int, int]):
        with self._lock:  # also while it is read: an open Parquet file serves one thread at a time
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
            table = self.shards[key[0]].read(key[1], COLUMNS[1:])
            columns = [table.column(name).chunk(0) for name in COLUMNS[1:]]
            self._groups[key] = columns
            self._held += table.nbytes
            while self._held > self._room and len(self._groups) > 1:
                _, old = self._groups.popitem(last=False)
                self._held -= sum(column.nbytes for column in old)
            return columns

    def _packed(self, example_id: str) -> PackedRows:
        try:
            shard, group, row = self._place[example_id]
        except KeyError:
            raise UserError(f"{self.folder}: the logit cache holds no example {example_id!r}") from None
        tokens, tail_total, payload = self._group((shard, group))
        return PackedRows(tokens[row].as_py(), tail_total[row].as_py(), payload[row].as_buffer())

    def rows(self, example_id: str) -> "TeacherRows":
        """Rows of one example. Raises UserError if the cache does not hold it or its shard is damaged."""
        try:
            return unpack(self._packed(example_id), self.spec)
        except (OSError, ValueError) as error:
            path = self.shards[self._place[example_id][0]].path
            raise UserError(f"{path}: example {example_id!r} cannot be decoded ({error})") from None

    def batch(self, ids: Iterable[str]) -> "TeacherRows":
        """Rows of several examples, one after another in the order asked. Threads may call it at the same time."""
        ids = list(ids)
        packed = [self._packed(example_id) for example_id in ids]
        try:
            return unpack_batch(packed, self.spec)
        except (OSError, ValueError):
            for example_id in ids:  # which one
                self.rows(example_id)
            raise
