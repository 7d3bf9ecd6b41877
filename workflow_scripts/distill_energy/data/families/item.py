"""What a template makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True)
class Item:
    """A prompt with its gold response; ``answer``, ``choices`` with the index ``right``, or ``check`` verify others."""

    prompt: str
    response: str
    answer: str | None = None
    choices: tuple[str, ...] | None = None
    right: int | None = None
    check: dict[str, Any] | None = None


#: A template draws one item; None means that this draw is unsuitable (the caller draws again).
Template = Callable[[Random], Item | None]
