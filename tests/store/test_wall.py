"""Wall seconds of attempts: nodes that train together count once, attempts that follow each other are summed."""

from __future__ import annotations

import pytest

from distill_energy.store.sidecar import Attempt, wall_seconds


def attempt(node: str, start: str, seconds: float | None) -> Attempt:
    return Attempt(
        id=f"{node}-{start}",
        host="host",
        slurm_node=node,
        start_utc=f"2026-11-24T{start}+00:00",
        start_mono_s=0.0,
        wall_s=seconds,
        outcome="completed",
    )


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([("a", "10:00:00", 60)], 60),
        ([("a", "10:00:00", 60), ("a", "10:05:00", 30)], 90),
        ([("a", "10:00:00", 60), ("b", "10:00:10", 60)], 70),
        ([("a", "10:00:00", 60), ("b", "10:00:10", 20), ("c", "11:00:00", 5), ("d", "11:00:00", 7)], 67),
        ([("a", "10:00:00", 60), ("a", "09:00:30", 30)], 90),  # the clock was set back an hour
        ([("a", "10:00:00", 60), ("a", "10:00:30", 60), ("b", "10:00:00", 60)], 120),  # or half a minute
        ([("a", "10:00:00", 60), ("b", "10:00:00", None)], None),
        ([], None),
    ],
)
def test_wall_seconds(attempts, expected):
    assert wall_seconds([attempt(*a) for a in attempts]) == expected
