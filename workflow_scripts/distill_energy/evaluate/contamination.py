"""Evaluation prompts that occur in training data: n-gram overlap (13 words, as in Brown et al. 2020, appendix C)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

N = 13
WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return WORD.findall(text.lower())


def grams(text: str, n: int = N) -> list[tuple[str, ...]]:
    """All n-grams of a text's words; the whole text where it is shorter (none if it has no word)."""
    found = words(text)
    if len(found) < n:
        return [tuple(found)] if found else []
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def overlapping(prompts: Sequence[str], texts: Iterable[str], n: int = N) -> list[bool]:
    """For each prompt, whether one of its n-grams occurs in one of ``texts``.

    A prompt of fewer than n words counts where all of it occurs as consecutive words. Only the prompts' n-grams are
    held in memory; ``texts`` is read once.
    """
    owners: dict[tuple[str, ...], set[int]] = {}
    for index, prompt in enumerate(prompts):
        for gram in grams(prompt, n):
            owners.setdefault(gram, set()).add(index)
    sizes = sorted({len(gram) for gram in owners})
    hit = [False] * len(prompts)
    for text in texts:
        found = words(text)
        for size in sizes:
            for start in range(len(found) - size + 1):
                for index in owners.get(tuple(found[start : start + size]), ()):
                    hit[index] = True
    return hit


def training_texts(path: Path) -> Iterator[str]:
    """Prompt and response of each training example, read in batches from ``train.parquet``."""
    for batch in pq.ParquetFile(path).iter_batches(batch_size=1024, columns=["prompt", "response"]):
        for prompt, response in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
            yield f"{prompt}\n{response}"


def contaminated(prompts: dict[str, list[str]], train: Path) -> dict[str, int]:
    """Benchmark → number of its prompts that overlap with the training data, in one pass over it."""
    flat = [(name, text) for name, texts in prompts.items() for text in texts]
    hits = overlapping([text for _, text in flat], training_texts(train))
    counts = dict.fromkeys(prompts, 0)
    for (name, _), hit in zip(flat, hits, strict=True):
        counts[name] += hit
    return counts
