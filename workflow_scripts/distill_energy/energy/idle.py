"""The idle baseline: what each device draws while nothing runs."""

from __future__ import annotations

import itertools
import socket
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..store import atomic
from .config import MeterConfig

STABLE = 0.10  # relative standard deviation of power over the stretches of an idle measurement
STRETCHES = 5
LATE = 1.5  # median interval over the one asked for, above which the setting cannot be kept


@dataclass
class IdleBaseline:
    """Idle watts by device (GPU UUID, RAPL zone) on one host; null with a reason where unknown."""

    host: str
    watts: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    spread: dict[str, float | None] = field(default_factory=dict)  # relative standard deviation
    stable: dict[str, bool | None] = field(default_factory=dict)
    seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "IdleBaseline":
        return cls(**data)

    def write(self, path: str | Path) -> None:
        """A row a device: host, device, watts, reason, spread, stable, seconds."""
        import pyarrow as pa

        rows = [
            {
                "host": self.host,
                "device": device,
                "watts": watts,
                "reason": self.reasons.get(device),
                "spread": self.spread.get(device),
                "stable": self.stable.get(device),
                "seconds": self.seconds,
            }
            for device, watts in self.watts.items()
        ]
        if not rows:
            rows = [{"host": self.host, "reason": "no device", "seconds": self.seconds}]
        kinds = [
            ("host", pa.string()),
            ("device", pa.string()),
            ("watts", pa.float64()),
            ("reason", pa.string()),
            ("spread", pa.float64()),
            ("stable", pa.bool_()),
            ("seconds", pa.float64()),
        ]
        atomic.write_parquet(path, pa.Table.from_pylist(rows, schema=pa.schema(kinds)))

    @classmethod
    def read(cls, path: str | Path) -> "IdleBaseline":
        """Read what :meth:`write` wrote. Raises UserError naming the file."""
        import pyarrow.parquet as pq

        try:
            rows = pq.read_table(path).to_pylist()
            baseline = cls(host=rows[0]["host"], seconds=rows[0]["seconds"])
            for row in rows:
                if row["device"] is None:
                    continue
                baseline.watts[row["device"]] = row["watts"]
                baseline.spread[row["device"]] = row["spread"]
                baseline.stable[row["device"]] = row["stable"]
                if row["reason"]:
                    baseline.reasons[row["device"]] = row["reason"]
        except Exception as error:
            raise UserError(f"{path}: not an idle baseline ({type(error).__name__}: {error})") from None
        return baseline


def measure_idle(config: MeterConfig, seconds: float) -> IdleBaseline:
    """Measure every device for ``seconds`` while this process sleeps.

    The window is cut into stretches; a device whose power varies by more than 10% between them was not idle: its
    watts are null, the reason saying so. Devices that CodeCarbon estimates have none: process mode leaves idle out.

    Raises UserError if the sampling interval is too long for ``seconds``, or shorter than this host can keep.
    """
    from . import journal
    from .attempts import Window
    from .meter import Meter

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
        name = component.device or component.component
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
