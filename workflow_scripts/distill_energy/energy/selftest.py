"""``energy selftest``: known loads on this machine, and whether what is read of them hangs together.

Idle, constant and square waves of 0.5 and 2 s, on the GPU where torch sees one, else on the CPU's cores. Of each: the
energy by counter and by power, the coverage, the flags. What is wrong is named.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..store.sidecar import Attempt, total
from .config import MeterConfig
from .host import usable_cores
from .meter import Meter

#: Name → period in seconds (None: constant, 0: idle).
LOADS: dict[str, float | None] = {"idle": 0.0, "constant": None, "square 0.5 s": 0.5, "square 2 s": 2.0}
DIFFER = 0.05  # of the counter, by which the integral of power may be off
#: Share of the step from idle to constant by which a square wave's mean may miss its middle.
MIDDLE = 0.25
#: A busy loop that ends when its input does.
_BURN = """
import sys, threading
waiting = threading.Thread(target=sys.stdin.read, daemon=True)
waiting.start()
while waiting.is_alive():
    sum(range(5000))
"""


@dataclass(frozen=True)
class Reading:
    """What one load gave."""

    load: str
    seconds: float
    watts: float | None
    source: str
    differ: float | None  # (cross-check − energy) / energy, the largest of the components that have one
    coverage: float | None
    flags: tuple[str, ...]
    reason: str | None = None


def reading_of(load: str, attempt: Attempt) -> Reading:
    """An attempt as a reading."""
    gross, _, source, reason = total(attempt.components)
    pairs = [(c.gross_j, c.crosscheck_j) for c in attempt.components if c.in_total and c.gross_j and c.crosscheck_j]
    differ = max(((check - value) / value for value, check in pairs), key=abs, default=None)
    watts = None if gross is None else gross / attempt.wall_s
    quality = attempt.quality
    return Reading(load, attempt.wall_s, watts, source, differ, quality.coverage, tuple(quality.flags), reason)


def judge(readings: Sequence[Reading]) -> list[str]:
    """What is wrong, a line each. Pure."""
    found = []
    for item in readings:
        if item.watts is None:
            found.append(f"{item.load}: the energy is unknown ({item.reason})")
            continue
        if item.source == "measured" and (item.coverage or 0) < 0.95:
            found.append(f"{item.load}: only {100 * (item.coverage or 0):.0f}% of the window is covered by readings")
        if item.source == "measured" and item.differ is not None and abs(item.differ) > DIFFER:
            found.append(f"{item.load}: power and counter differ by {100 * item.differ:+.1f}%")
        for flag in item.flags:
            if flag in ("gap", "lost_device", "counter_stalled", "counter_reset", "disputed", "shared_device"):
                found.append(f"{item.load}: flagged {flag}")
    by = {item.load: item.watts for item in readings if item.watts is not None}
    idle, full = by.get("idle"), by.get("constant")
    if idle is not None and full is not None:
        if full <= 1.1 * idle:
            found.append(f"a constant load draws {full:.1f} W, idling {idle:.1f}: the load is not seen")
        else:
            for load in ("square 0.5 s", "square 2 s"):
                middle = (idle + full) / 2
                if load in by and abs(by[load] - middle) > MIDDLE * (full - idle):
                    found.append(f"{load}: {by[load]:.1f} W on average, about {middle:.1f} expected (aliasing?)")
    return found


@contextlib.contextmanager
def _burner() -> Iterator[tuple[str, Callable[[float], None]]]:
    """(what is loaded, a function that loads it for so many seconds)."""
    try:
        import torch

        gpu = torch.cuda.is_available()
    except ImportError:
        gpu = False
    if gpu:
        one = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)

        def burn(seconds: float) -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for _ in range(4):
                    one @ one
                torch.cuda.synchronize()

        burn(0.5)
        yield torch.cuda.get_device_name(), burn
        return
    cores = usable_cores()

    def burn(seconds: float) -> None:
        procs = [subprocess.Popen([sys.executable, "-c", _BURN], stdin=subprocess.PIPE) for _ in range(cores)]
        time.sleep(seconds)
        for proc in procs:
            proc.stdin.close()
        for proc in procs:
            proc.wait()

    yield f"{cores} CPU core(s)", burn


def _apply(burn: Callable[[float], None], period: float | None, seconds: float) -> None:
    if period == 0.0:
        time.sleep(seconds)
    elif period is None:
        burn(seconds)
    else:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            burn(period / 2)
            time.sleep(period / 2)


def selftest(config: MeterConfig, seconds: float, say: Callable[[str], None] = print) -> list[str]:
    """Load, measure, judge. ``seconds`` a load. Returns what is wrong."""
    readings = []
    with tempfile.TemporaryDirectory(prefix="distill-energy-") as folder, _burner() as (where, burn):
        say(f"loading {where}, {seconds:.0f} s each\n")
        say(f"{'load':<14}{'W':>8}  {'source':<12}{'power − counter':>16}{'coverage':>10}  flags")
        for load, period in LOADS.items():
            with Meter(f"{folder}/{load.replace(' ', '-')}", config) as meter:
                _apply(burn, period, seconds)
            item = reading_of(load, meter.attempt)
            readings.append(item)
            watts = "unknown" if item.watts is None else f"{item.watts:.1f}"
            differ = "–" if item.differ is None or item.source != "measured" else f"{100 * item.differ:+.1f}%"
            coverage = "–" if item.coverage is None else f"{100 * item.coverage:.0f}%"
            say(f"{load:<14}{watts:>8}  {item.source:<12}{differ:>16}{coverage:>10}  {', '.join(item.flags)}")
    return judge(readings)
