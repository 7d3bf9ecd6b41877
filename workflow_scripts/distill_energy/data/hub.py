"""Data sets of the hub and local files, streamed through ``datasets``; sampled and split by hash, not by order."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..config.sources import Dataset, FileData, GeneratedData, HubData
from ..errors import UserError
from .chat import Conversation
from .files import Row, files_of, read_file
from .formats import Filtered, Refused, read
from .hashing import digest, normalised, unit
from .source import Refusals, Source, described

#: Share of the rows that may be refused before the stage stops, unless the data set says otherwise.
MAX_DROPPED = 0.01


class Smallest:
    """The ``size`` items of smallest rank among all that are added, in bounded memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._heap: list[tuple[float, str, Conversation]] = []

    def add(self, rank: float, item: Conversation) -> None:
        entry = (-rank, item.id, item)
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    def ascending(self) -> list[Conversation]:
        return [item for _, _, item in sorted(self._heap, key=lambda entry: (-entry[0], entry[1]))]


def prompt_key(item: Conversation) -> str:
    """What must not be in both splits: the text before the first answer."""
    return digest(normalised(item.prompt))


def sample(
    rows: Iterable[dict[str, Any]],
    format_name: str,
    n_train: int,
    n_validation: int,
    seed: int,
    scan: int | None = None,
) -> Source:
    """Sample and split rows by hash of their content: the order of the rows decides nothing (unless ``scan`` cuts it).

    Validation takes the prompts of smallest hash; training takes examples by another hash, none with a prompt that
    validation took. The validation stream is therefore to be read first. Reserves beyond ``n`` replace examples that
    have no label left after truncation. Memory: about 1.25 n_train conversations, and 8 bytes for each row seen.
    """
    validation = Smallest(2 * n_validation + 16)
    train = Smallest(n_train + n_train // 4 + 3 * n_validation + 64)
    counts = {"n_scanned": 0, "n_unusable": 0, "n_filtered": 0, "n_repeated_rows": 0}
    refused: dict[str, Refusals] = {}
    seen: set[int] = set()
    for row in rows:
        if scan is not None and counts["n_scanned"] >= scan:
            break
        counts["n_scanned"] += 1
        try:
            item = read(row, format_name)
        except Filtered:
            counts["n_filtered"] += 1
            continue
        except Refused as reason:
            counts["n_unusable"] += 1
            place = getattr(row, "place", f"row {counts['n_scanned']}")
            refused.setdefault(str(reason), Refusals(place)).count += 1
            continue
        # Rows that differ in case or indentation are not repeats: in code and in formats both mean something.
        exact = int(digest(*(message["content"] for message in item.messages))[:16], 16)
        if exact in seen:
            counts["n_repeated_rows"] += 1
            continue
        seen.add(exact)
        content = digest(*(normalised(message["content"]) for message in item.messages))
        validation.add(unit("validation", seed, prompt_key(item)), item)
        train.add(unit("train", seed, content), item)
    taken: set[str] = set()

    def validation_stream() -> Iterator[Conversation]:
        for item in validation.ascending():
            key = prompt_key(item)
            if key not in taken:
                taken.add(key)
                yield item

    def train_stream() -> Iterator[Conversation]:
        return (item for item in train.ascending() if prompt_key(item) not in taken)

    return Source(validation=validation_stream(), train=_lazily(train_stream), counts=counts, refused=refused)


def _lazily(make) -> Iterator[Conversation]:
    yield from make()


def read_rows(dataset: HubData | FileData) -> Iterator[dict[str, Any]]:
    """Rows of a hub data set (streamed) or of local files. Raises UserError that names the data set."""
    place = place_of(dataset)
    if isinstance(dataset, FileData) or Path(place).exists():
        for path in files_of(place):
            yield from read_file(path)
        return
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(
            place, dataset.subset, split=dataset.split, revision=dataset.revision, streaming=True
        )
        for number, row in enumerate(rows, 1):
            yield Row(row, f"{place}, row {number}")
    except Exception as error:  # the library and its transports raise many kinds; all mean that it cannot be read
        raise UserError(f"dataset {place}: cannot be read ({type(error).__name__}: {error})") from error


def place_of(dataset: HubData | FileData) -> str:
    """What names a data set: its path, or its id on the hub."""
    return dataset.path if isinstance(dataset, FileData) else dataset.id


def allowed_share(dataset: Dataset) -> float:
    """Share of rows that may be refused before the stage stops."""
    told = None if isinstance(dataset, GeneratedData) else dataset.max_dropped
    return MAX_DROPPED if told is None else told


def open_rows(dataset: HubData | FileData, log=print) -> Source:
    """Read, sample and split the rows of a data set."""
    scan = dataset.scan if isinstance(dataset, HubData) else None
    rows = read_rows(dataset)
    source = sample(rows, dataset.format, dataset.n_train, dataset.n_validation, dataset.seed, scan)
    scanned, dropped = source.counts["n_scanned"], source.counts["n_unusable"]
    reasons = described(source.refused)
    log(f"{scanned} rows scanned, {dropped} refused" + (f": {reasons}" if reasons else ""))
    allowed = allowed_share(dataset)
    if scanned and dropped / scanned > allowed:
        name = place_of(dataset)
        raise UserError(
            f"dataset {name}: {dropped} of {scanned} rows are refused (max_dropped: {allowed:g}): {reasons}"
        )
    return source
