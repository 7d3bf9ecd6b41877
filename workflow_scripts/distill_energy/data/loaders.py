"""From a dataset's specification to its source: the same conversations on every machine."""

from __future__ import annotations

from ..config.sources import Dataset, GeneratedData
from .generated import train_stream, validation_stream
from .hub import open_rows
from .source import Source


def open_source(dataset: Dataset, log=print) -> Source:
    """The source that a data set's section names."""
    if isinstance(dataset, GeneratedData):
        return Source(train_stream(dataset.seed, dataset.families), validation_stream(dataset.seed, dataset.families))
    return open_rows(dataset, log)
