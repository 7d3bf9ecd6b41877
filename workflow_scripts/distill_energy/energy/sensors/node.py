"""A meter of the whole node, outside it: a command (Redfish, IPMI, a PDU's) or a CSV that yields watts.

Readings are lines ``[TIME] WATTS [UNIT]``, TIME as ISO 8601 or Unix seconds, UNIT W, mW or kW; of a CSV the columns
``utc`` and ``watts``, ``mW`` or ``kW``. The command is started again when it ends; one that keeps running and writes is
read as it writes. Whatever it does, hang, die or print garbage, is a flag of the attempt and costs the work nothing.
"""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

UNITS = {"w": 1.0, "mw": 1e-3, "kw": 1e3}  # "MW" is refused, not read as milliwatts
COLUMNS = {"watts": "W", "W": "W", "mW": "mW", "mw": "mW", "kW": "kW", "kw": "kW"}
SAID = 3  # notes of one kind, at most
AHEAD_S = 1.0  # a reading of a time to come: the meter's clock is off
LATE_S = 60.0  # a first reading so old: it is off, or stands
_LINE = re.compile(
    r"(?:(?P<time>\d{4}-\d\d-\d\d[T ]\S+|\d{9,}(?:\.\d*)?)[\s,;]+)?(?P<watts>[-+\d.eE]+)\s*(?P<unit>[mkK]?[wW])?"
)


def parse_line(line: str, unit: str = "W") -> tuple[float | None, float]:
    """(Unix seconds or None, W) of one line. Raises ValueError saying what is wrong."""
    match = _LINE.fullmatch(line.strip())
    if match is None:
        raise ValueError(f"{line.strip()[:60]!r} is no [TIME] WATTS [UNIT]")
    return parse_time(match["time"]), _watts(match["watts"], match["unit"] or unit)


def parse_time(text: str | None) -> float | None:
    if text is None:
        return None
    if re.fullmatch(r"\d+(\.\d*)?", text):
        return float(text)
    when = dt.datetime.fromisoformat(text.replace(" ", "T"))
    return (when if when.tzinfo else when.replace(tzinfo=dt.UTC)).timestamp()


def _watts(text: str, unit: str) -> float:
    value = float(text) * UNITS[unit.lower()]
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{text!r} {unit} is no power")
    return value


class Node:
    """The sampler's device. ``sample`` never waits: it takes what has arrived since it was last asked."""

    def __init__(self, settings: Mapping[str, Any], interval_s: float) -> None:
        """``settings``: ``command`` or ``csv``, ``unit``, ``offset_s``, ``in_total``, as ``energy.node``."""
        self.settings, self.interval = settings, interval_s
        self.offset = settings.get("offset_s") or 0.0
        self.source = _Command(settings, self.problem, interval_s) if settings.get("command") else None
        self.source = self.source or _Csv(settings, self.problem)
        self.flags: list[tuple[str, str]] = []  # new ones, for the sampler to journal
        self._said: dict[str, int] = {}
        self._last: tuple[float, float] | None = None

    def problem(self, flag: str, note: str) -> None:
        self._said[flag] = self._said.get(flag, 0) + 1
        if self._said[flag] <= SAID:
            self.flags.append((flag, f"node: {note}"))

    def describe(self) -> dict[str, Any]:
        return {
            "component": "node",
            "device": None,
            "kind": "node",
            "unit": 1.0,
            "counter": False,
            "power": True,
            "in_total": bool(self.settings.get("in_total")),
            "error": None,
        }

    def sample(self) -> list[Any]:
        """[None, mW of the newest reading, problem, its monotonic time, earlier new ones as [time, mW]]."""
        found = []
        shift = time.time() - time.monotonic()
        for stamp, arrived, watts in self.source.read():
            t = arrived if stamp is None else stamp + self.offset - shift
            if stamp is not None and t - arrived > AHEAD_S:
                self.problem("node_clock", f"a reading is {t - arrived:.0f} s ahead of this host's clock (offset_s)")
            elif stamp is not None and self._last is None and self.source.live and arrived - t > LATE_S:
                self.problem("node_clock", f"the first reading is {arrived - t:.0f} s old (offset_s)")
            if self._last is None or t > self._last[0]:
                self._last = (t, round(1000 * watts))
                found.append(self._last)
        if not found:
            return [None, None, self.source.state]
        return [None, found[-1][1], None, found[-1][0], [list(pair) for pair in found[:-1]]]

    def close(self) -> None:
        self.source.close()


class _Command:
    live = True

    def __init__(self, settings: Mapping[str, Any], problem: Any, interval_s: float) -> None:
        self.command, self.unit = settings["command"], settings.get("unit") or "W"
        self.problem, self.pause = problem, max(interval_s, 1.0)
        self.patience = settings.get("timeout_s") or 10.0
        self.told = False  # anything, since it was started
        self.state: str | None = "no reading yet"
        self.process: subprocess.Popen | None = None
        self.buffer = b""
        self.heard = self.due = 0.0

    def read(self) -> list[tuple[float | None, float, float]]:
        now = time.monotonic()
        if self.process is None:
            if now < self.due:
                return []
            self._start(now)
            if self.process is None:
                return []
        found, ended = self._lines(now), self.process.poll()
        if ended is not None:
            found += self._lines(now, last=True)
            if ended != 0:
                self._trouble("node_died", f"the command ended with code {ended}")
            elif not self.told:
                self._trouble("node_garbage", "the command printed nothing")
            self._drop(now)
        elif now - self.heard > self.patience:
            self._trouble("node_hung", f"the command said nothing for {self.patience:g} s and was ended")
            self._drop(now)
        return found

    def _start(self, now: float) -> None:
        self.heard, self.due, self.told = now, now, False
        try:
            self.process = subprocess.Popen(
                ["sh", "-c", self.command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            os.set_blocking(self.process.stdout.fileno(), False)
        except OSError as error:
            self._trouble("node_died", f"the command cannot be started ({error.strerror})")
            self.due = now + self.pause

    def _lines(self, now: float, last: bool = False) -> list[tuple[float | None, float, float]]:
        with contextlib.suppress(BlockingIOError, OSError):
            while chunk := os.read(self.process.stdout.fileno(), 65536):
                self.buffer = (self.buffer + chunk)[-1_000_000:]
        *lines, self.buffer = [*self.buffer.split(b"\n"), b""] if last else self.buffer.split(b"\n")
        found = []
        for line in filter(None, (raw.decode(errors="replace").strip() for raw in lines)):
            self.heard, self.told = now, True
            try:
                stamp, watts = parse_line(line, self.unit)
            except (ValueError, OverflowError) as error:
                self._trouble("node_garbage", str(error))
                continue
            self.state = None
            found.append((stamp, now, watts))
        return found

    def _trouble(self, flag: str, note: str) -> None:
        self.state = note
        self.problem(flag, note)

    def _drop(self, now: float) -> None:
        process, self.process, self.buffer = self.process, None, b""
        self.due = max(now, self.due + self.pause)
        with contextlib.suppress(OSError):  # its children too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()

    def close(self) -> None:
        if self.process is not None:
            self._drop(time.monotonic())


class _Csv:
    """Rows that a logger appends. The rows of the last minutes before the start are read too."""

    live = False
    BEFORE = 65536  # bytes

    def __init__(self, settings: Mapping[str, Any], problem: Any) -> None:
        self.path, self.problem = Path(settings["csv"]).expanduser(), problem
        self.state: str | None = "no row yet"
        self.place: int | None = None
        self.columns: list[str] = []
        self.rest = b""

    def read(self) -> list[tuple[float | None, float, float]]:
        try:
            with open(self.path, "rb") as handle:
                if self.place is None:
                    self.columns = [name.strip() for name in next(csv.reader([handle.readline().decode()]), [])]
                    begin = handle.tell()
                    size = handle.seek(0, os.SEEK_END)
                    self.place = max(begin, size - self.BEFORE)
                    if self.place > begin:  # within a row
                        handle.seek(self.place)
                        handle.readline()
                        self.place = handle.tell()
                handle.seek(self.place)
                data = handle.read(1 << 22)
                self.place += len(data)
        except (OSError, UnicodeDecodeError) as error:
            self.state = f"{self.path}: {getattr(error, 'strerror', None) or 'not UTF-8'}"
            self.problem("node_died", self.state)
            return []
        *lines, self.rest = (self.rest + data).split(b"\n")
        unit = next((name for name in COLUMNS if name in self.columns), None)
        if "utc" not in self.columns or unit is None:
            self.state = f"{self.path}: columns are {', '.join(self.columns)}: utc and one of watts, mW, kW are needed"
            self.problem("node_garbage", self.state)
            return []
        found, now = [], time.monotonic()
        for line in filter(None, (raw.decode(errors="replace").strip() for raw in lines)):
            row = dict(zip(self.columns, next(csv.reader([line])), strict=False))
            try:
                stamp = parse_time(row["utc"].strip())
                found.append((stamp, now, _watts(row[unit], COLUMNS[unit])))
                self.state = None
            except (KeyError, ValueError, OverflowError) as error:
                self.problem("node_garbage", f"{self.path}: {line[:60]!r}: {error}")
        return found

    def close(self) -> None:
        pass
