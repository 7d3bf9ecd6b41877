"""Evaluation prompts that occur in training data: n-gram overlap (13 words, as in Brown et al. 2020, appendix C).

The stage ``contamination`` makes them once for a data set and a suite, of the prompts that the teacher was asked; the
evaluations of that suite look theirs up.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..config.params import ContaminationParams
from ..context import Context
from ..errors import UserError
from ..store.atomic import write_parquet
from .result import prompt_id

N = 13
WORD = re.compile(r"\w+")
FLAGS = "flags.parquet"
PROMPTS = "prompts.parquet"
TEXTS = 4096  # texts that are looked at together


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return WORD.findall(text.lower())


def grams(text: str, n: int = N) -> list[tuple[str, ...]]:
    """All n-grams of a text's words; the whole text where it is shorter (none if it has no word)."""
    found = words(text)
    if len(found) < n:
        return [tuple(found)] if found else []
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


class _Grams:
    """The prompts' n-grams of one size, found in a stream of word numbers by a hash and then compared.

    gram: [g, size] word numbers, each row once; owners: prompts of each row.
    """

    def __init__(self, found: dict[tuple[int, ...], set[int]], values: np.ndarray, scales: np.ndarray) -> None:
        gram = np.array(list(found), dtype=np.int64)
        hashes = _hashes(values[gram], scales)
        order = np.argsort(hashes)
        self.hashes, self.gram = hashes[order], gram[order]
        owners = list(found.values())
        self.owners = [owners[i] for i in order]
        self.todo = np.ones(len(order), dtype=bool)  # not found so far

    def look(self, stream: np.ndarray, hashes: np.ndarray, at: np.ndarray) -> None:
        """Look at places ``at`` of ``stream``; ``hashes``: of the words from each place of it on."""
        row = np.searchsorted(self.hashes, hashes[at])
        while len(at):  # once, but for grams of one hash
            same_hash = row < len(self.hashes)
            same_hash[same_hash] = self.hashes[row[same_hash]] == hashes[at[same_hash]]
            at, row = at[same_hash], row[same_hash]
            same = (stream[at[:, None] + np.arange(self.gram.shape[1])] == self.gram[row]).all(1)
            self.todo[row[same]] = False
            at, row = at[~same], row[~same] + 1

    def found(self) -> Iterator[int]:
        """Prompts of which an n-gram was found."""
        for i in np.flatnonzero(~self.todo):
            yield from self.owners[i]


def _hashes(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Σ scale · value modulo 2⁶⁴ of [g, size] values."""
    return (values * scales[: values.shape[1]]).sum(1, dtype=np.uint64)


def overlapping(prompts: Sequence[str], texts: Iterable[str], n: int = N) -> list[bool]:
    """For each prompt, whether one of its n-grams occurs in one of ``texts``.

    A prompt of fewer than n words counts where all of it occurs as consecutive words. Only the prompts' n-grams and
    some thousand texts are held in memory; ``texts`` is read once.
    """
    numbers: dict[str, int] = {}  # words of the prompts, from 1; 0 stands for any other and for a text's end
    by_size: dict[int, dict[tuple[int, ...], set[int]]] = {}
    for index, prompt in enumerate(prompts):
        for gram in grams(prompt, n):
            key = tuple(numbers.setdefault(word, len(numbers) + 1) for word in gram)
            by_size.setdefault(len(key), {}).setdefault(key, set()).add(index)
    hit = [False] * len(prompts)
    if not by_size:
        return hit
    random = np.random.default_rng(0)
    values = random.integers(1, 1 << 63, len(numbers) + 1, dtype=np.uint64)
    scales = random.integers(1, 1 << 63, max(by_size), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    wanted = {size: _Grams(found, values, scales) for size, found in by_size.items()}
    texts = iter(texts)
    while batch := list(itertools.islice(texts, TEXTS)):
        stream = _numbered(batch, numbers)
        mixed, known = values[stream], stream != 0
        hashes, run = np.zeros(len(stream), dtype=np.uint64), np.ones(len(stream), dtype=bool)
        for size in range(1, max(wanted) + 1):
            here = len(stream) - size + 1
            if here <= 0:
                break
            hashes = hashes[:here] + mixed[size - 1 :] * scales[size - 1]
            run = run[:here] & known[size - 1 :]  # of the prompts' words alone
            if size in wanted:
                wanted[size].look(stream, hashes, np.flatnonzero(run))
    for found in wanted.values():
        for index in found.found():
            hit[index] = True
    return hit


def _numbered(texts: Sequence[str], numbers: dict[str, int]) -> np.ndarray:
    """Word numbers of texts, a 0 after each."""
    parts = []
    for text in texts:
        parts += words(text)
        parts.append("")
    return np.fromiter(map(numbers.get, parts, itertools.repeat(0)), dtype=np.int64, count=len(parts))


def training_texts(path: Path) -> Iterator[str]:
    """Prompt and response of each training example, read in batches from ``train.parquet``."""
    for batch in pq.ParquetFile(path).iter_batches(batch_size=1024, columns=["prompt", "response"]):
        for prompt, response in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
            yield f"{prompt}\n{response}"


def flagged(prompts: Sequence[str], train: Path, known: dict[str, bool] | None = None) -> list[bool]:
    """Whether each prompt overlaps with the training data. Those that ``known`` (by ``prompt_id``) lacks are looked
    for in the data, in one pass over it."""
    flags = {prompt: (known or {}).get(prompt_id(prompt)) for prompt in prompts}
    if missing := [prompt for prompt, flag in flags.items() if flag is None]:
        flags |= zip(missing, overlapping(missing, training_texts(train)), strict=True)
    return [bool(flags[prompt]) for prompt in prompts]


def read_flags(folder: Path) -> dict[str, bool]:
    """``prompt_id`` → whether it overlaps, from a folder of the stage ``contamination``."""
    table = pq.read_table(folder / FLAGS, columns=["prompt_id", "contaminated"])
    return dict(zip(table["prompt_id"].to_pylist(), table["contaminated"].to_pylist(), strict=True))


def write_prompts(path: Path, prompts: Iterable[str]) -> None:
    """``prompts.parquet`` of the teacher's evaluation: the text behind each ``prompt_id``, once."""
    texts = {prompt_id(prompt): prompt for prompt in prompts}
    write_parquet(path, pa.table({"prompt_id": list(texts), "prompt": list(texts.values())}, PROMPT_SCHEMA))


PROMPT_SCHEMA = pa.schema([("prompt_id", pa.string()), ("prompt", pa.string())])
FLAG_SCHEMA = pa.schema(
    [("benchmark", pa.string()), ("item_id", pa.string()), ("prompt_id", pa.string()), ("contaminated", pa.bool_())]
)


def training_file(data: Path) -> Path:
    """The training examples of a data set's folder. Raises UserError where there are none."""
    path = Path(data) / "train.parquet"
    if not path.is_file():
        raise UserError(f"{path}: missing; contamination cannot be counted")
    return path


def main(ctx: Context[ContaminationParams]) -> dict[str, Any]:
    """Write ``flags.parquet``: each item that the teacher was asked, and whether its prompt overlaps.

    An evaluation of an earlier release kept no prompts: then there are no flags, and evaluations look for themselves.
    """
    evaluation, train = Path(ctx.inputs["teacher_evaluation"]), training_file(ctx.inputs["data"])
    if not (evaluation / PROMPTS).is_file():
        ctx.log(f"{evaluation}: made by an earlier release, without {PROMPTS}; each evaluation looks for its own")
        write_parquet(ctx.out / FLAGS, FLAG_SCHEMA.empty_table())
        return {"prompts": 0, "items": 0, "contaminated": 0}
    texts = pq.read_table(evaluation / PROMPTS)
    items = pq.read_table(evaluation / "items.parquet", columns=["benchmark", "item_id", "prompt_id"])
    flags = dict(zip(texts["prompt_id"].to_pylist(), flagged(texts["prompt"].to_pylist(), train), strict=True))
    column = [flags[key] for key in items["prompt_id"].to_pylist()]
    write_parquet(ctx.out / FLAGS, items.append_column("contaminated", pa.array(column, pa.bool_())))
    return {"prompts": len(texts), "items": len(items), "contaminated": sum(column)}
