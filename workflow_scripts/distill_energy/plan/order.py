"""The order of runs, at random with a seed."""

from __future__ import annotations

import hashlib


def place_in_order(seed: int | None, key: str) -> int:
    """Priority of a job, 0 to 65535, uniform over keys and the same on each start; 0 without a seed."""
    if seed is None:
        return 0
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:2])
