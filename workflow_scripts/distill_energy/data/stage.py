"""The stage ``preprocess data-…``: conversations become token ids and labels, for training and validation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config.params import DataParams
from ..context import Context

GROUP_ROWS = 65_536
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
    tokenizer,
    conversations: Iterator,
    n: int,
    max_length: int,
    counts: dict[str, int],
    stops: list[int] | None = None,
    refused: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """The first ``n`` examples of usable conversations as rows; counts what was cut, dropped or doubled on the way.

    A conversation that the template refuses is left out and counted in ``refused`` under the template's words.

    Token ids are int32 arrays: lists of Python integers would take nine times the memory.
    """
    import numpy as np

    from ..errors import UserError
    from .chat import accepted, encode_turns
    from .hashing import digest
    from .source import Refusals

    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for conversation in conversations:
        key = digest(*(m["content"] for m in conversation.messages))
        if key in seen:
            counts["n_duplicates"] += 1
            continue
        seen.add(key)
        try:
            messages, merged = accepted(tokenizer, conversation.messages)
            encoded = encode_turns(tokenizer, messages, max_length, stops)
        except UserError as reason:
            if refused is None:
                raise
            refused.setdefault(str(reason), Refusals(conversation.id)).count += 1
            continue
        if not encoded:
            counts["n_dropped"] += 1
            continue
        counts["n_system_merged"] += int(merged)
        counts["n_expanded"] += int(len(encoded) > 1)
        for number, turn in enumerate(encoded):
            counts["n_truncated"] += int(turn.truncated)
            rows.append(
                {
                    "id": conversation.id if len(encoded) == 1 else f"{conversation.id}-turn{number}",
                    "prompt": conversation.prompt,
                    "response": conversation.response,
                    "input_ids": np.asarray(turn.input_ids, dtype=np.int32),
                    "loss_mask": np.asarray(turn.loss_mask, dtype=np.uint8),
                    "prompt_ids": np.asarray(turn.prompt_ids, dtype=np.int32),
                }
            )
            if len(rows) == n:
                return rows
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]], columns) -> None:
    """Write rows in groups of ``GROUP_ROWS``: an Arrow list column holds 2³¹ elements at most, a file any number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ..store.atomic import replacing

    with replacing(path) as temporary, pq.ParquetWriter(temporary, columns) as writer:
        for start in range(0, len(rows), GROUP_ROWS):
            writer.write_table(pa.Table.from_pylist(rows[start : start + GROUP_ROWS], schema=columns))


def check_made_with(path: Path, tokenizer) -> None:
    """Raise UserError if a data file was tokenised with another tokenizer: its ids would mean other texts."""
    import pyarrow.parquet as pq

    from ..models import fingerprint

    try:
        made_by = (pq.read_schema(path).metadata or {}).get(b"tokenizer_sha256")
    except (OSError, ValueError):
        return  # said where it is read
    if made_by is not None:
        hint = "; teachers share the tokenizer of teacher.model"
        own = fingerprint.tokenizer_hash(tokenizer)
        fingerprint.check_made_with(path, made_by.decode(), own, "teacher", hint)


def main(ctx: Context[DataParams]) -> dict[str, Any]:
    """Write both Parquet files. Returns counts: rows, truncated, dropped (no label left), duplicates left out.

    Raises UserError if the source has fewer usable examples than asked.
    """
    import json

    from ..errors import UserError
    from ..models.fingerprint import tokenizer_hash
    from ..models.sources import declared_stop_ids, load_tokenizer
    from ..models.template import FROZEN, names_today, original_template
    from .chat import check_tokenizer
    from .hub import allowed_share
    from .loaders import open_source
    from .source import described

    dataset, model = ctx.params.dataset, ctx.params.model
    tokenizer = load_tokenizer(model, ctx.inputs)
    stops = declared_stop_ids(model, ctx.inputs, tokenizer)
    check_tokenizer(tokenizer, stops)
    identity = tokenizer_hash(tokenizer)  # students with another tokenizer are refused
    source = open_source(dataset, ctx.log)
    results: dict[str, Any] = {}
    counts = dict.fromkeys(("n_truncated", "n_dropped", "n_duplicates", "n_system_merged", "n_expanded"), 0)
    refused: dict[str, Any] = {}
    for split, n in (("validation", dataset.n_validation), ("train", dataset.n_train)):
        rows = encode_stream(tokenizer, getattr(source, split), n, dataset.max_length, counts, stops, refused)
        left_out = sum(found.count for found in refused.values())
        if left_out > allowed_share(dataset) * (left_out + len(rows)):
            raise UserError(f"dataset {ctx.spec.name}: {left_out} conversations are refused: {described(refused)}")
        if len(rows) < n:
            raise UserError(f"dataset {ctx.spec.name}: {n} {split} examples asked, only {len(rows)} usable ones found")
        processed = sum(len(row["input_ids"]) for row in rows)
        labels = sum(int(row["loss_mask"].sum()) for row in rows)
        ctx.meter.add_tokens("processed", processed)
        ctx.meter.add_tokens("loss", labels)
        made_by = {
            "dataset": json.dumps(ctx.spec.params["dataset"], sort_keys=True),
            "split": split,
            "tokenizer_sha256": identity,
        }
        write_rows(ctx.out / f"{split}.parquet", rows, schema().with_metadata(made_by))
        results |= {f"n_{split}": n, f"{split}_tokens": processed, f"{split}_label_tokens": labels}
        ctx.log(f"{split}: {n} examples, {processed} tokens, {labels} of them labels")
    if refused:
        ctx.log(f"refused by the chat template: {described(refused)}")
    for reason, found in {**source.refused, **refused}.items():
        results[f"refused: {reason}"] = found.count
    if names_today(original_template(tokenizer)):
        results["template_date"] = FROZEN.isoformat()
    return results | counts | source.counts
