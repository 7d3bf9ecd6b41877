"""What every data source gives: a stream of training and one of validation conversations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .chat import Conversation


@dataclass
class Source:
    """Two streams in a fixed order, and counts of what was left out on the way (filled while streaming)."""

    train: Iterator[Conversation]
    validation: Iterator[Conversation]
    counts: dict[str, int] = field(default_factory=dict)
