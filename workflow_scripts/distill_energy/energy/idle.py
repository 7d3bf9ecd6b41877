"""The idle baseline: what each device draws while nothing runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..store import atomic


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
