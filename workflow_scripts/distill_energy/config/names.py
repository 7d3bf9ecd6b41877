"""Names that become parts of paths: the one place that says what they may be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*")
MOST = 80  # characters of a name in the configuration
MOST_JOINED = 200  # of an artifact's name, which joins several; file systems take 255 bytes


def meant(given: object, known: Iterable[str]) -> str:
    """`` (did you mean kd?)`` for a slip of one of ``known``, two letters changed over included; else an empty text."""
    names = list(known)
    swapped = [name for name in names if sorted(name) == sorted(str(given))]
    close = swapped or difflib.get_close_matches(str(given), names, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def check_name(name: str) -> str:
    """``name`` if it can be part of a path. Raises ValueError with what is allowed."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"name {name!r}: letters, digits, '_', '.', and single '-' only, a letter or digit first")
    if len(name) > MOST:
        raise ValueError(f"name {name[:20]!r}…: {len(name)} characters, {MOST} at most")
    return name


def check_part(part: str) -> str:
    """``part`` if it is one component of a path, and no way out of its folder. Raises ValueError."""
    if not part or part in (".", "..") or any(c in part for c in "/\\\0\n") or len(part.encode()) > MOST_JOINED:
        raise ValueError(f"{part[:60]!r} cannot be a part of a path")
    return part
