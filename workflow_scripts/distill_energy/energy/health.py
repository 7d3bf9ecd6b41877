"""What explains a joule: temperature, SM clock, utilisation, memory and throttling of a GPU over a stretch of ticks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..store import sidecar as schema

#: Throttle reasons by bit (nvml.h, ``nvmlClocksEventReason*``). A power cap is how a GPU under full load is run.
REASONS = {
    0x2: "application_clocks",
    0x4: "power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
    0x100: "display_clocks",
}
SLOWED = 0x8 | 0x20 | 0x40 | 0x80  # heat, or a supply that does not give enough
THROTTLED = 0.05  # share of the readings, above which the attempt is flagged
HOT_C = 85.0  # where the driver does not say at which temperature it slows the device down
MARGIN_C = 2.0

_FIELDS = ("temperature_c", "sm_clock_mhz", "utilisation", "memory_used_bytes")
_SCALE = (1.0, 1.0, 0.01, float(1 << 20))


def health(ticks: Sequence[Mapping[str, Any]], device: str) -> schema.Health | None:
    """Median and extremes of a GPU over ``ticks``; None where the journal has none of it (records of before)."""
    rows = [tick["h"][device] for tick in ticks if device in tick.get("h", {})]
    if not rows:
        return None
    spreads = {}
    for index, (name, scale) in enumerate(zip(_FIELDS, _SCALE, strict=True)):
        values = [row[index] * scale for row in rows if row[index] is not None]
        if values:
            spreads[name] = schema.Spread(median=statistics.median(values), min=min(values), max=max(values))
    masks = [row[4] for row in rows if row[4] is not None]
    throttle = None
    if masks:
        shares = {name: sum(bool(mask & bit) for mask in masks) / len(masks) for bit, name in REASONS.items()}
        throttle = {name: share for name, share in shares.items() if share}
        slowed = sum(bool(mask & SLOWED) for mask in masks) / len(masks)
    return schema.Health(
        device=device, **spreads, throttle=throttle, slowed=slowed if masks else None, readings=len(rows)
    )


def judge(found: schema.Health, hot_c: float | None) -> list[tuple[str, str]]:
    """Flags of a stage that ran hot or throttled, each with its note."""
    flags = []
    limit = HOT_C if hot_c is None else hot_c
    if found.temperature_c is not None and found.temperature_c.max >= limit - MARGIN_C:
        flags.append(("hot", f"{found.temperature_c.max:.0f} °C; it slows down at {limit:.0f} °C"))
    if found.slowed is not None and found.slowed > THROTTLED:
        reasons = ", ".join(name for bit, name in REASONS.items() if bit & SLOWED and name in (found.throttle or {}))
        flags.append(("throttled", f"in {100 * found.slowed:.0f}% of the readings ({reasons})"))
    return flags
