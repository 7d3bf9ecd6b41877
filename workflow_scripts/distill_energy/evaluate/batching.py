"""Padding of token sequences into batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch


def by_length(lengths: Sequence[int], max_tokens: int, max_rows: int | None = None) -> Iterator[list[int]]:
    """Indices in batches, longest first, each at most ``max_tokens`` once padded (one row at least).

    Longest first: a batch that does not fit in memory shows at once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for index in order:
        widest = lengths[batch[0]] if batch else lengths[index]
        full = (len(batch) + 1) * widest > max_tokens or (max_rows is not None and len(batch) >= max_rows)
        if batch and full:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad(rows: Sequence[Sequence[int]], pad_id: int, device, left: bool = False):
    """Token ids and attention mask, both int64 of shape (rows, longest)."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, span] = torch.as_tensor(row, dtype=torch.long)
        mask[i, span] = 1
    return ids.to(device), mask.to(device)
