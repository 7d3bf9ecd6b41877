"""``energy watch``: one screen of what this host's devices draw, and of the measured work that runs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..store.sidecar import Attempt, total
from . import journal
from .attempts import per_token, read_attempt
from .co2 import co2e
from .config import MeterConfig
from .running import RunningTotal
from .sensors.devices import Host

CLEAR = "\x1b[H\x1b[2J"


@dataclass(frozen=True)
class DeviceLine:
    """A device: W now and J since the watch began, None where unknown; ``note`` says why."""

    name: str
    watts: float | None
    joules: float | None
    note: str = ""


class Devices:
    """This host's counters, read by the watch itself: it takes no lock and is no measurement of anybody."""

    def __init__(self, config: MeterConfig) -> None:
        # an estimate is of a process tree; the work below has its own
        settings = config.as_dict() | {"cpu": "off" if config.cpu == "off" else "rapl"}
        self.host = Host(settings, os.environ, os.getpid())
        self.described = self.host.describe()
        self.total = RunningTotal(self.described, self.host.absent, lost_s=10.0)
        self.last: tuple[float, list[float]] | None = None

    def lines(self) -> list[DeviceLine]:
        """A reading of every device, and what cannot be read."""
        t, values = self.host.sample()
        self.total.add(t, values)
        before, self.last = self.last, (t, list(self.total.joules))
        found = []
        for index, (device, value) in enumerate(zip(self.described, values, strict=True)):
            watts = None if value[1] is None else value[1] * 1e-3
            if watts is None and before is not None and t > before[0]:
                watts = (self.total.joules[index] - before[1][index]) / (t - before[0])
            problem = value[2] if len(value) > 2 and value[2] else ""
            name = " ".join(filter(None, (device.get("name"), device["device"] or device["component"])))
            known = self.total.last[index] is not None
            found.append(
                DeviceLine(name, watts if known else None, self.total.joules[index] if known else None, problem)
            )
        found += [DeviceLine(item["component"], None, None, item["reason"]) for item in self.host.absent]
        return found


class Work:
    """The attempts under a results folder that run now. One that has ended is not read again."""

    def __init__(self, results: str | Path) -> None:
        self.folder = Path(results) / "attempts"
        self.ended: set[Path] = set()

    def running(self) -> Iterator[tuple[str, Attempt]]:
        for path in sorted(self.folder.glob(f"*/*/*/*/{journal.NAME}")):
            if path in self.ended:
                continue
            attempt = read_attempt(path)
            if attempt is not None and attempt.outcome == "running":
                stage, name, version = path.parts[-5:-2]
                yield f"{stage}/{name}/{version[:8]}", attempt
            elif attempt is not None:
                self.ended.add(path)


def screen(
    now: str,
    devices: Sequence[DeviceLine],
    work: Sequence[tuple[str, Attempt]],
    grid: Mapping[str, Any],
    width: int = 100,
) -> str:
    """The screen's text, lines cut to ``width`` characters. Pure."""
    text = [f"energy watch  {now}", "", f"{'device':<46}{'W':>10}{'J':>14}"]
    for line in devices:
        note = f"  {line.note}" if line.note else ""
        text.append(f"{line.name[:45]:<46}{_figure(line.watts):>10}{_figure(line.joules):>14}{note}")
    known = [line.watts for line in devices if line.watts is not None]
    text += [f"{'sum of what is read':<46}{_figure(sum(known) if known else None):>10}", ""]
    text.append(f"{'measured work':<46}{'s':>10}{'J':>14}{'J/token':>12}{'gCO2e':>10}")
    for name, attempt in work:
        gross, _, source, reason = total(attempt.components)
        rate = per_token(gross, reason, attempt.tokens).value
        grams = co2e(gross, **grid).g
        cells = f"{attempt.wall_s:>10.0f}{_figure(gross):>14}{_figure(rate, 4):>12}{_figure(grams, 3):>10}"
        text.append(f"{name[:45]:<46}{cells}  {source if reason is None else reason}")
    if not work:
        text.append("none runs here")
    return "\n".join(line[:width] for line in text)


def _figure(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def watch(
    config: MeterConfig, results: str | Path, grid: Mapping[str, Any], seconds: float | None, out: TextIO = sys.stdout
) -> None:
    """Show the screen each ``config.interval_s``, for ``seconds`` or until interrupted. A terminal is drawn over."""
    devices, work = Devices(config), Work(results)
    end = None if seconds is None else time.monotonic() + seconds
    terminal = out.isatty()
    try:
        while True:
            width = os.get_terminal_size(out.fileno()).columns if terminal else 1000
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            shown = screen(now, devices.lines(), list(work.running()), grid, width or 100)
            print(f"{CLEAR if terminal else ''}{shown}", file=out, flush=True)
            if end is not None and time.monotonic() >= end:
                return
            time.sleep(config.interval_s)
    except KeyboardInterrupt:
        return
    finally:
        devices.host.close()
