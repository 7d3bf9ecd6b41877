"""Stable hashes: what decides a sample, a split or a duplicate, whatever the order of the rows."""

from __future__ import annotations

import hashlib
import re


def digest(*parts: object) -> str:
    """Hex SHA-256 of the parts, each ended by a zero byte."""
    state = hashlib.sha256()
    for part in parts:
        state.update(str(part).encode("utf-8", "surrogatepass") + b"\0")
    return state.hexdigest()


def unit(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    return int(digest(*parts)[:13], 16) / 16**13


def normalised(text: str) -> str:
    """Text for finding duplicates: case and runs of white space do not count."""
    return re.sub(r"\s+", " ", text).strip().casefold()
