"""The stage ``preprocess data-…``: conversations become token ids and labels, for training and validation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

COLUMNS = ("id", "prompt", "response", "input_ids", "loss_mask", "prompt_ids")


def schema(extra: dict[str, str] | None = None):
    """The Arrow schema of ``train.parquet`` and ``validation.parquet``; ``extra`` adds columns (name → type name)."""
    import pyarrow as pa

    fields = [
        pa.field("id", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("response", pa.string()),
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("loss_mask", pa.list_(pa.uint8())),
        pa.field("prompt_ids", pa.list_(pa.int32())),
    ]
    fields += [pa.field(name, getattr(pa, kind)()) for name, kind in (extra or {}).items()]
    return pa.schema(fields)


def encode_stream(
    tokenizer, conversations: Iterator, n: int, max_length: int, counts: dict[str, int]
) -> list[dict[str, Any]]:
    """The first ``n`` usable conversations as rows; counts what was truncated, dropped or doubled on the way.

    Token ids are int32 arrays: lists of Python integers would take nine times the memory.
    """
    import numpy as np

    from .chat import encode
    from .hashing import digest, normalised

    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for conversation in conversations:
        key = digest(*(normalised(m["content"]) for m in conversation.messages))
        if key in seen:
            counts["n_duplicates"] += 1
            continue
        seen.add(key)
        encoded = encode(tokenizer, conversation.messages, max_length)
        if encoded is None:
            counts["n_dropped"] += 1
            continue
        counts["n_truncated"] += int(encoded.truncated)
        rows.append(
            {
                "id": conversation.id,
                "prompt": conversation.prompt,
                "response": conversation.response,
                "input_ids": np.asarray(encoded.input_ids, dtype=np.int32),
                "loss_mask": np.asarray(encoded.loss_mask, dtype=np.uint8),
                "prompt_ids": np.asarray(encoded.prompt_ids, dtype=np.int32),
            }
        )
        if len(rows) == n:
            break
    return rows


def main(ctx) -> dict[str, Any]:
    """Write both Parquet files. Returns counts: rows, truncated, dropped (no label left), duplicates left out.

    Raises UserError if the source has fewer usable examples than asked.
    """
    import json

    import pyarrow as pa

    from ..errors import UserError
    from ..models.fingerprint import tokenizer_hash
    from ..models.sources import load_tokenizer
    from ..store.atomic import write_parquet
    from .chat import check_tokenizer
    from .loaders import open_source

    spec = ctx.spec.params["dataset"]
    tokenizer = load_tokenizer(ctx.spec.params["model"], ctx.inputs)
    check_tokenizer(tokenizer)
    identity = tokenizer_hash(tokenizer)  # students with another tokenizer are refused
    source = open_source(spec, ctx.log)
    results: dict[str, Any] = {}
    counts = {"n_truncated": 0, "n_dropped": 0, "n_duplicates": 0}
    for split, n in (("validation", spec["n_validation"]), ("train", spec["n_train"])):
        rows = encode_stream(tokenizer, getattr(source, split), n, spec["max_length"], counts)
        if len(rows) < n:
            raise UserError(f"dataset {ctx.spec.name}: {n} {split} examples asked, only {len(rows)} usable ones found")
        processed = sum(len(row["input_ids"]) for row in rows)
        labels = sum(int(row["loss_mask"].sum()) for row in rows)
        ctx.meter.add_tokens("processed", processed)
        ctx.meter.add_tokens("loss", labels)
        table = pa.Table.from_pylist(rows, schema=schema())
        described = {"dataset": json.dumps(spec, sort_keys=True), "split": split, "tokenizer_sha256": identity}
        write_parquet(ctx.out / f"{split}.parquet", table.replace_schema_metadata(described))
        results |= {f"n_{split}": n, f"{split}_tokens": processed, f"{split}_label_tokens": labels}
        ctx.log(f"{split}: {n} examples, {processed} tokens, {labels} of them labels")
    return results | counts | source.counts
