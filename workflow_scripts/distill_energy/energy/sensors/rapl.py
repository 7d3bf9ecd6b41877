"""CPU packages and DRAM through the kernel's powercap files (RAPL).

Counted: top zones ``package-N`` and their ``dram`` subzones. Not counted: ``psys`` (it contains the packages) and
``core``/``uncore`` (inside the package). The same socket shown twice (MSR and MMIO interface) counts once, MSR first.
Packages of several dies that mirror one counter (the same value at the same instant, again and again) count once.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKAGE = re.compile(r"package-\d+(-die-\d+)?$")
REMEDY = "make it readable, e.g. with `chmod a+r` on the energy_uj files at boot, or a udev rule"
FALLBACK_LIMIT_W = 2000.0  # of one package where the kernel shows no limit; tells a wrap from a reset


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


@dataclass
class Zone:
    """One RAPL zone. ``range_uj`` is what the counter counts to before it wraps."""

    path: Path
    name: str
    component: str
    range_uj: int | None
    limit_w: float
    error: str | None = None

    def read(self) -> tuple[int | None, str | None]:
        """The counter in µJ, or None and why."""
        try:
            return int(_read(self.path / "energy_uj")), None
        except PermissionError:
            return None, f"{self.path / 'energy_uj'}: permission denied; {REMEDY}"
        except (OSError, ValueError) as error:
            return None, f"{self.path / 'energy_uj'}: {getattr(error, 'strerror', None) or error}"

    def describe(self) -> dict[str, Any]:
        return {
            "component": self.component,
            "device": self.name,
            "kind": "rapl",
            "unit": 1e-6,
            "counter": True,
            "power": False,
            "range": self.range_uj,
            "limit_w": self.limit_w,
            "error": self.error,
        }


def discover(root: str | Path) -> list[Zone]:
    """Zones under ``root`` (normally /sys/class/powercap), each once; empty if there is no RAPL."""
    packages: dict[str, Path] = {}
    for folder in _folders(Path(root), r"intel-rapl:\d+$") + _folders(Path(root), r"intel-rapl-mmio:\d+$"):
        try:
            name = _read(folder / "name")
        except OSError:
            continue
        if _PACKAGE.match(name):
            packages.setdefault(name, folder)
    zones = []
    for name, folder in _without_mirrors(sorted(packages.items())):
        zones.append(_zone(folder, name, "cpu"))
        zones += [_zone(sub, f"{name}/dram", "dram") for sub in _subzones(folder) if _name(sub) == "dram"]
    return zones


ROUNDS, ROUND_S = 5, 0.004  # the counter moves about every millisecond


def _without_mirrors(packages: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Packages whose counter is not another one's: read in turns, a mirror always lies between two readings of it."""
    kept: list[tuple[str, Path]] = []
    for name, folder in packages:
        if not any(_mirrors(first, folder) for _, first in kept):
            kept.append((name, folder))
    return kept


def _mirrors(first: Path, second: Path) -> bool:
    values = []
    try:
        for _ in range(ROUNDS):
            before, between, after = (int(_read(path / "energy_uj")) for path in (first, second, first))
            if not before <= between <= after:
                return False
            values.append(before)
            time.sleep(ROUND_S)
    except (OSError, ValueError):
        return False
    return len(set(values)) > 1  # counters that stand still tell nothing


def problem(root: str | Path) -> str | None:
    """Why nothing is found under ``root`` although zones are listed there: links that lead nowhere, in a container."""
    dangling = [p for p in _folders(Path(root), r"intel-rapl") if p.is_symlink() and not p.exists()]
    if not dangling:
        return None
    target = os.path.dirname(os.path.normpath(os.path.join(dangling[0].parent, os.readlink(dangling[0]))))
    return (
        f"{root} holds links to {target}, which is not mounted here or is masked: mount the zones themselves in the "
        "links' place (docker: -v /sys/devices/virtual/powercap/intel-rapl:/sys/class/powercap:ro), or read-only too "
        "(-v /sys/devices/virtual/powercap:/sys/devices/virtual/powercap:ro)"
    )


def _folders(root: Path, pattern: str) -> list[Path]:
    try:
        names = [entry for entry in root.iterdir() if re.match(pattern, entry.name)]
    except OSError:
        return []
    return sorted(names, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])


def _subzones(folder: Path) -> list[Path]:
    """Subzones lie inside the zone, or (through the class folder's links) beside it."""
    pattern = re.escape(folder.name) + r":\d+$"
    return _folders(folder, pattern) or _folders(folder.parent, pattern)


def _name(folder: Path) -> str | None:
    try:
        return _read(folder / "name")
    except OSError:
        return None


def _zone(folder: Path, name: str, component: str) -> Zone:
    try:
        span: int | None = int(_read(folder / "max_energy_range_uj"))
    except (OSError, ValueError):
        span = None
    zone = Zone(folder, name, component, span, _limit(folder))
    _, zone.error = zone.read()
    return zone


def _limit(folder: Path) -> float:
    """The highest power the zone may draw, doubled (short peaks); W."""
    best = 0.0
    for index in range(3):
        for key in ("max_power_uw", "power_limit_uw"):
            try:
                best = max(best, int(_read(folder / f"constraint_{index}_{key}")) / 1e6)
            except (OSError, ValueError):
                continue
    return 2 * best if 1 <= best <= FALLBACK_LIMIT_W / 2 else FALLBACK_LIMIT_W
