"""Measuring the idle baseline: a meter's window in which this process sleeps."""

from __future__ import annotations

import itertools
import socket
import statistics
import tempfile
import time
from dataclasses import replace
from typing import Any

from ..errors import UserError
from . import journal
from .attempts import Window
from .config import MeterConfig
from .identity import idle_name
from .idle import IdleBaseline
from .meter import Meter

STABLE = 0.10  # relative standard deviation of power over the stretches of an idle measurement
STRETCHES = 5
LATE = 1.5  # median interval over the one asked for, above which the setting cannot be kept


def measure_idle(config: MeterConfig, seconds: float) -> IdleBaseline:
    """Measure every device for ``seconds`` while this process sleeps.

    The window is cut into stretches; a device whose power varies by more than 10% between them was not idle: its
    watts are null, the reason saying so. Devices that CodeCarbon estimates have none: process mode leaves idle out.

    Raises UserError if the sampling interval is too long for ``seconds``, or shorter than this host can keep.
    """
    if seconds < STRETCHES * config.interval_s:
        raise UserError(
            f"prerun.idle_seconds is {seconds}: at least {STRETCHES} sampling intervals "
            f"({STRETCHES * config.interval_s:g} s) are needed"
        )
    with tempfile.TemporaryDirectory(prefix="distill-energy-idle-") as folder:
        # the stage that calls this may hold the device locks itself
        with Meter(folder, config=replace(config, exclusive=False)) as meter:
            time.sleep(seconds)
        records, _ = journal.read(meter.folder / journal.NAME)
    reached = meter.attempt.quality.interval_reached_s
    if reached is not None and reached > LATE * config.interval_s:
        raise UserError(
            f"energy.interval_s is {config.interval_s}: this host reaches {reached:.3f} s between samples; ask for more"
        )
    opened = next(r for r in records if r["r"] == "open")
    ticks = [r for r in records if r["r"] == "tick" and r["t"] >= meter.attempt.start_mono_s]
    window = Window(records, opened, ticks, meter.attempt.start_mono_s, meter.attempt.end_mono_s)
    components, energies = window.components()
    baseline = IdleBaseline(host=socket.gethostname(), seconds=seconds)
    for component, energy, device in zip(components, energies, opened["devices"], strict=False):
        name = idle_name(device)
        baseline.watts[name] = baseline.spread[name] = baseline.stable[name] = None
        if device["kind"] == "codecarbon":
            baseline.reasons[name] = "CodeCarbon's estimate of one process leaves out the machine's idle power"
        elif component.gross_j is None:
            baseline.reasons[name] = component.reason or "unknown"
        else:
            _judge(baseline, name, energy, window.start, window.stop)
    return baseline


def _judge(baseline: IdleBaseline, name: str, energy: Any, start: float, stop: float) -> None:
    edges = [start + (stop - start) * k / STRETCHES for k in range(STRETCHES + 1)]
    watts = [(energy.at(b) - energy.at(a)) / (b - a) for a, b in itertools.pairwise(edges)]
    mean = energy.gross_j / (stop - start)
    spread = statistics.pstdev(watts) / mean if mean > 0 else 0.0
    baseline.spread[name], baseline.stable[name] = spread, spread <= STABLE
    if spread <= STABLE:
        baseline.watts[name] = mean
    else:
        baseline.reasons[name] = f"not idle: power varied by {100 * spread:.0f}% around {mean:.1f} W"
