"""Where a joule is measured: devices, sampler process, journal, integration, attempts, idle baseline, CO2e.

Names are loaded on first use, so that the sampler process (which runs inside this package) stays small.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "Meter": "meter",
    "MeterConfig": "config",
    "IdleBaseline": "idle",
    "measure_idle": "idle_window",
    "fold_attempts": "attempts",
    "attempts_of": "attempts",
    "resolve_visible_gpus": "sensors.visible",
    "co2e": "co2",
    "write_power": "power",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
