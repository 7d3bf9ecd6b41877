"""What a stage's ``main`` is given, as the rooms below ``stage.py`` may name it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

P_co = TypeVar("P_co", covariant=True)


class Window(Protocol):
    """A phase after it ended: its gross joules; None where they are unknown."""

    joules: float | None


class Meter(Protocol):
    """What a stage tells its meter, and asks it."""

    def add_tokens(self, kind: str, n: int) -> None:
        """Count ``n`` tokens as ``processed``, ``loss``, ``generated`` or ``padding``."""

    def phase(self, name: str) -> AbstractContextManager[Window]:
        """Book what is spent inside under ``name``."""

    def joules(self) -> float | None:
        """Gross joules of this attempt so far; None where they are unknown."""


class Context(Protocol[P_co]):
    """A stage's parameters, the folders of its inputs by role, and where it works."""

    @property
    def params(self) -> P_co:
        """The resolved parameters (``config/params.py``)."""

    spec: Any
    inputs: dict[str, Path]
    out: Path
    work: Path
    meter: Meter
    log: Callable[[str], None]
