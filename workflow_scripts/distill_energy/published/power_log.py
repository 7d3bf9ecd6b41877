"""A power log of the public reference harness: read, checked, integrated.

What cannot be read ends in one line that names the file and the row; what can be read and is not as it should be (a
clock that jumped, one absurd sample) is named in ``notes`` with a flag.
"""

from __future__ import annotations

import csv
import itertools
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..energy.account import trapezoid
from ..errors import UserError

#: No accelerator draws so much. With a known limit, three times that.
MOST_W = 3000.0
SESSION_S = 60.0  # a longer pause between readings parts two sessions: the harness appends to an existing log

Reading = tuple[float, tuple[float, ...]]  # unix seconds, watts by GPU


@dataclass(frozen=True)
class PowerLog:
    """Readings in the order of time, the GPU columns' names, and what was wrong with the file."""

    path: Path
    readings: tuple[Reading, ...]
    gpus: tuple[str, ...]
    flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    lost_s: float = 0.0  # seconds that the clock went back by: readings there overlay others

    @property
    def start(self) -> float:
        return self.readings[0][0]

    @property
    def end(self) -> float:
        return self.readings[-1][0]

    def inside(self, start: float, end: float) -> "PowerLog":
        """The readings of a window."""
        kept = tuple(r for r in self.readings if start <= r[0] <= end)
        return PowerLog(self.path, kept, self.gpus, self.flags, self.notes, self.lost_s)

    def sessions(self) -> list["PowerLog"]:
        """The log parted at pauses above ``SESSION_S``."""
        parts: list[list[Reading]] = []
        for reading in self.readings:
            if not parts or reading[0] - parts[-1][-1][0] > SESSION_S:
                parts.append([])
            parts[-1].append(reading)
        return [PowerLog(self.path, tuple(p), self.gpus, self.flags, self.notes, self.lost_s) for p in parts]

    def joules(self, start: float | None = None, end: float | None = None) -> float:
        """Σ over GPUs; a log of one reading has none."""
        start, end = self.start if start is None else start, self.end if end is None else end
        return math.fsum(integrate([(t, w[i]) for t, w in self.readings], start, end) for i in range(len(self.gpus)))


@dataclass
class _Found:
    flags: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lost_s: float = 0.0

    def add(self, flag: str, note: str) -> None:
        self.flags.append(flag)
        self.notes.append(note)


def read_text(path: Path) -> str:
    """A UTF-8 file's text; UserError in one line where it cannot be read as such."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_power_log(path: Path, limit_w: float | None = None) -> PowerLog:
    """A ``power_log.csv``; a torn last line is left out. UserError names a bad row.

    ``limit_w``: the largest power limit of its GPUs, where the harness recorded one.
    """
    path = Path(path)
    lines = read_text(path).splitlines()
    rows = list(csv.reader(lines))
    header = rows[0] if rows else []
    gpus = [name for name in header if re.fullmatch(r"gpu_\d+_power_w", name)]
    if not header or header[0] != "timestamp" or not gpus:
        semicolons = " (columns parted by semicolons?)" if lines and ";" in lines[0] else ""
        found = ", ".join(header) or "none"
        raise UserError(f"{path}: expected columns timestamp, gpu_<n>_power_w, …; found {found}{semicolons}")
    columns = [header.index(name) for name in gpus]
    readings: list[tuple[int, float, tuple[float, ...]]] = []
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        reading = _reading(path, number, row, header, columns, last=number == len(rows))
        if reading is not None:
            readings.append((number, *reading))
    found = _Found()
    readings = _plausible(path, readings, (3 * limit_w) if limit_w else MOST_W, found)
    _order(readings, found)
    ordered = tuple(sorted((t, watts) for _, t, watts in readings))
    return PowerLog(path, ordered, tuple(gpus), tuple(found.flags), tuple(found.notes), found.lost_s)


def _reading(path: Path, number: int, row: list[str], header: list[str], columns: list[int], last: bool):
    """(seconds, watts) of a row; None for one that was torn as the harness was killed."""
    where = f"{path}: line {number}"
    if len(row) != len(header):
        if last and len(row) < len(header):
            return None
        comma = " (decimal commas?)" if len(row) > len(header) else ""
        raise UserError(f"{where} has {len(row)} values for {len(header)} columns{comma}: {','.join(row)[:60]!r}")
    try:
        time_s, watts = float(row[0]), tuple(float(row[c]) for c in columns)
    except ValueError:
        if last:
            return None
        hint = " (decimal commas?)" if any("," in value for value in row) else ""
        hint = " (ISO text? the harness writes Unix seconds)" if re.match(r"\d{4}-\d\d-\d\d", row[0]) else hint
        raise UserError(f"{where} is not a reading{hint}: {','.join(row)[:60]!r}") from None
    if not math.isfinite(time_s) or any(not math.isfinite(w) or w < 0 for w in watts):
        raise UserError(f"{where}: watts are finite and not negative: {','.join(row)[:60]!r}")
    if time_s > 1e11:
        raise UserError(f"{where}: {row[0]} looks like milliseconds; the harness writes Unix seconds")
    return time_s, watts


def _plausible(path: Path, readings: list, most_w: float, found: _Found) -> list:
    """Without samples that no GPU can draw; UserError where they are the rule, as watts in another unit are."""
    absurd = [r for r in readings if max(r[2]) > most_w]
    if not absurd:
        return readings
    number, _, watts = absurd[0]
    if 2 * len(absurd) >= len(readings):
        typical = statistics.median(max(r[2]) for r in readings)
        raise UserError(f"{path}: line {number}: {max(watts):g} W on one GPU (typically {typical:g}): milliwatts?")
    many = f"{len(absurd)} samples" if len(absurd) > 1 else "one sample"
    found.add("absurd_sample", f"{many} above {most_w:g} W left out (line {number}: {max(watts):g} W)")
    return [r for r in readings if max(r[2]) <= most_w]


def _order(readings: list, found: _Found) -> None:
    """Name times that run backwards, step back, or occur twice."""
    steps = [(b[0], b[1] - a[1]) for a, b in itertools.pairwise(readings)]
    if len(steps) > 1 and all(step < 0 for _, step in steps):
        found.add("reversed_times", "the times run backwards: read from the end")
        return
    back = [(number, step) for number, step in steps if step < 0]
    if back:
        found.lost_s = -math.fsum(step for _, step in back)
        number, step = back[0]
        found.add("clock_step", f"the clock goes back by {-step:.1f} s at line {number}: what overlaps is averaged")
    if same := sum(step == 0 for _, step in steps):
        found.add("duplicated_times", f"{same} reading(s) have the time of the one before")


def integrate(readings: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Joules of (seconds, watts) over [start, end] by trapezoids; edge readings are held to the ends."""
    points = held(readings, start, end)
    return math.fsum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in itertools.pairwise(points))


def held(readings: Sequence[tuple[float, float]], start: float, end: float) -> list[tuple[float, float]]:
    """The readings of a window, the first and last held to its ends. ValueError if there is none."""
    inside = [(t, w) for t, w in readings if start <= t <= end]
    if not inside:
        raise ValueError("no reading inside the window")
    return [(start, inside[0][1]), *inside, (end, inside[-1][1])]


def bound(readings: Sequence[tuple[float, float]], start: float, end: float, interval_s: float, cap_w: float) -> float:
    """Half-width in joules by which gaps and steps of the power leave the integral open."""
    return trapezoid(held(readings, start, end), interval_s, cap_w)[1]
