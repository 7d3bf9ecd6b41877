"""Data sets of the hub and local files, streamed through ``datasets``; sampled and split by hash, not by order."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from .chat import Conversation
from .formats import conversation
from .hashing import digest, normalised, unit
from .source import Source

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


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
    counts = {"n_scanned": 0, "n_unusable": 0, "n_repeated_rows": 0}
    seen: set[int] = set()
    for row in rows:
        if scan is not None and counts["n_scanned"] >= scan:
            break
        counts["n_scanned"] += 1
        item = conversation(row, format_name)
        if item is None:
            counts["n_unusable"] += 1
            continue
        content = digest(*(normalised(message["content"]) for message in item.messages))
        if int(content[:16], 16) in seen:
            counts["n_repeated_rows"] += 1
            continue
        seen.add(int(content[:16], 16))
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

    return Source(validation=validation_stream(), train=_lazily(train_stream), counts=counts)


def _lazily(make) -> Iterator[Conversation]:
    yield from make()


def files_of(path: str) -> list[Path]:
    """Data files of a path: a file, a folder's JSON lines and Parquet files, or a glob. Raises UserError if none."""
    place = Path(path).expanduser()
    if place.is_dir():
        found = sorted(p for p in place.rglob("*") if p.suffix in READERS)
    elif place.is_file():
        found = [place]
    else:
        found = sorted(p for p in place.parent.glob(place.name) if p.is_file())
    if not found:
        raise UserError(f"dataset files {path}: none found")
    kinds = {READERS.get(p.suffix) for p in found}
    if None in kinds or len(kinds) > 1:
        raise UserError(f"dataset files {path}: all must be JSON lines, or all Parquet ({', '.join(READERS)})")
    return found


def read_rows(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of a hub data set (streamed) or of local files. Raises UserError that names the data set."""
    import datasets

    datasets.disable_progress_bars()
    local = spec["source"] == "files"
    place = spec["path"] if local else spec["id"]
    try:
        if local or Path(place).exists():
            files = files_of(place)
            reader = READERS[files[0].suffix]
            yield from datasets.load_dataset(
                reader, data_files=[str(path) for path in files], split="train", streaming=True
            )
        else:
            yield from datasets.load_dataset(
                place, spec.get("subset"), split=spec["split"], revision=spec.get("revision"), streaming=True
            )
    except UserError:
        raise
    except Exception as error:  # the library and its transports raise many kinds; all mean that it cannot be read
        raise UserError(f"dataset {place}: cannot be read ({type(error).__name__}: {error})") from error


def open_rows(spec: dict[str, Any], log=print) -> Source:
    """Read, sample and split the rows of ``spec`` (``HubData`` or ``FileData``)."""
    source = sample(
        read_rows(spec), spec["format"], spec["n_train"], spec["n_validation"], spec.get("seed", 0), spec.get("scan")
    )
    log(f"{source.counts['n_scanned']} rows scanned, {source.counts['n_unusable']} without usable messages")
    return source
