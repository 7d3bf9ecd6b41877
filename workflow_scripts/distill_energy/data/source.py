"""What every data source gives: a stream of training and one of validation conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .chat import Conversation


@dataclass
class Refusals:
    """Rows refused for one reason: the first one's place, and how many."""

    first: str
    count: int = 0


def by_count(refused: Mapping[str, Refusals]) -> list[tuple[str, Refusals]]:
    """Reasons, the commonest first."""
    return sorted(refused.items(), key=lambda item: (-item[1].count, item[0]))


def described(refused: Mapping[str, Refusals]) -> str:
    """For the log: each reason with its count and the first place."""
    return "; ".join(f"{reason}: {found.count} (first: {found.first})" for reason, found in by_count(refused))


@dataclass
class Source:
    """Two streams in a fixed order, and counts of what was left out on the way (filled while streaming)."""

    train: Iterator[Conversation]
    validation: Iterator[Conversation]
    counts: dict[str, int] = field(default_factory=dict)
    refused: dict[str, Refusals] = field(default_factory=dict)
