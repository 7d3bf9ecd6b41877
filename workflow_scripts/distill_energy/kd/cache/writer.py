"""Writing a cache: shards of row groups, each complete or absent, so that a killed stage goes on where it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import UserError
from ...store.atomic import replacing
from .certificate import ShardStats
from .format import FOOTER_KEY, Shard, footer_bytes, shard_name

if TYPE_CHECKING:
    from .rows import PackedRows
    from .spec import CacheSpec

ROW_GROUP_BYTES = 256 * 1024  # a batch is read row group by row group: large ones make random access dear
SHARD_TOKENS = 1 << 17
SHARD_EXAMPLES = 512


def plan_shards(
    tokens: Sequence[int], max_tokens: int = SHARD_TOKENS, max_examples: int = SHARD_EXAMPLES
) -> list[tuple[int, int]]:
    """Ranges [start, stop) of examples, in order, of at most max_tokens response tokens (or one example)."""
    plan, start, total = [], 0, 0
    for i, n in enumerate(tokens):
        if i > start and (total + n > max_tokens or i - start >= max_examples):
            plan.append((start, i))
            start, total = i, 0
        total += n
    if start < len(tokens):
        plan.append((start, len(tokens)))
    return plan


class CacheWriter:
    """Writes the shards of one cache. ``missing`` lists those that are not there yet, whole and of this cache.

    ids and tokens describe every example of the data in order (tokens: response tokens). provenance: hashes of
    teacher, tokenizer, template and data, and what else is to be known; a folder that holds shards of another cache is
    refused. Memory: one shard's compressed rows.
    """

    def __init__(
        self,
        folder: str | Path,
        spec: "CacheSpec",
        ids: Sequence[str],
        tokens: Sequence[int],
        provenance: dict[str, Any] | None = None,
        max_tokens: int = SHARD_TOKENS,
        max_examples: int = SHARD_EXAMPLES,
        log: Callable[[str], None] = lambda message: None,
        leads: bool = True,
    ) -> None:
        if len(ids) != len(tokens):
            raise ValueError(f"{len(ids)} ids, {len(tokens)} token counts")
        if len(set(ids)) != len(ids):
            raise UserError("logit cache: two examples of the data have the same id")
        self.folder, self.spec, self.provenance = Path(folder), spec, dict(provenance or {})
        self.ids, self.tokens = list(ids), [int(n) for n in tokens]
        self.plan = plan_shards(self.tokens, max_tokens, max_examples)
        self.missing: list[int] = []
        if not leads:  # another process's writer knows what is missing, and says which shard to make
            return
        self._clear()
        for index in range(len(self.plan)):
            path = self.folder / shard_name(index)
            if not path.exists():
                self.missing.append(index)
                continue
            try:
                self._check(index, path)
            except UserError as error:
                log(f"logit cache: {error}; the shard is made again")
                self.missing.append(index)

    def _clear(self) -> None:
        """Remove what a killed attempt left behind, and shards of a longer plan."""
        planned = {shard_name(index) for index in range(len(self.plan))}
        for path in [*self.folder.glob(".shard-*.tmp"), *self.folder.glob("shard-*.parquet")]:
            if path.name not in planned:
                path.unlink()

    @property
    def done_ids(self) -> set[str]:
        """Ids of examples that lie in complete shards."""
        missing = set(self.missing)
        return {
            example
            for index, (start, stop) in enumerate(self.plan)
            if index not in missing
            for example in self.ids[start:stop]
        }

    def _head(self, index: int) -> dict[str, Any]:
        start, stop = self.plan[index]
        return {
            "spec": self.spec.to_json(),
            "provenance": self.provenance,
            "shard": index,
            "shards": len(self.plan),
            "first_row": start,
            "rows": stop - start,
            "tokens": sum(self.tokens[start:stop]),
            "ids_sha256": hashlib.sha256("\n".join(self.ids[start:stop]).encode()).hexdigest(),
        }

    def _check(self, index: int, path: Path) -> None:
        shard = Shard(path)
        shard.verify()
        for key, value in self._head(index).items():
            if shard.footer.get(key) != value:
                raise UserError(f"{path}: belongs to another cache ({key} differs)")

    def write(self, index: int, rows: "Iterable[PackedRows]", audits: Sequence[dict[str, Any]] = ()) -> Path:
        """Write shard ``index``: the rows of its examples, in order. Returns the path of the complete shard."""
        start, stop = self.plan[index]
        stats = ShardStats(self.spec)
        stats.audits = list(audits)
        columns: dict[str, list] = {name: [] for name in ("id", "tokens", "tail_total", "payload")}
        for position, packed in enumerate(rows):
            expected = self.tokens[start + position]
            if len(packed) != expected:
                raise ValueError(f"example {self.ids[start + position]}: {len(packed)} rows for {expected} tokens")
            stats.add(packed)
            columns["id"].append(self.ids[start + position])
            for name in ("tokens", "tail_total", "payload"):
                columns[name].append(getattr(packed, name))
        if len(columns["id"]) != stop - start:
            raise ValueError(f"shard {index}: {len(columns['id'])} examples, {stop - start} planned")
        types = [pa.string(), pa.int32(), pa.int32(), pa.binary()]
        schema = pa.schema([pa.field(n, t, nullable=False) for n, t in zip(columns, types, strict=True)])
        payload = [len(binary) for binary in columns["payload"]]
        content = {**self._head(index), "payload_bytes": sum(payload), "stats": stats.to_json()}
        path = self.folder / shard_name(index)
        with (
            replacing(path) as temporary,
            pq.ParquetWriter(
                temporary,
                schema,
                compression={"id": "zstd", **dict.fromkeys(["tokens", "tail_total", "payload"], "none")},
                use_dictionary=False,
                write_statistics=["id"],
                write_page_checksum=True,
                store_schema=False,  # a second copy of the footer
            ) as writer,
        ):
            for group in _row_groups(payload):
                arrays = [pa.array(columns[f.name][group], f.type) for f in schema]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            writer.add_key_value_metadata({FOOTER_KEY: footer_bytes(content)})
        if index in self.missing:
            self.missing.remove(index)
        return path


def _row_groups(payload: list[int]) -> list[slice]:
    groups, start, total = [], 0, 0
    for i, size in enumerate(payload):
        total += size
        if total >= ROW_GROUP_BYTES:
            groups.append(slice(start, i + 1))
            start, total = i + 1, 0
    if start < len(payload):
        groups.append(slice(start, len(payload)))
    return groups
