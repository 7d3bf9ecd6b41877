"""Fake hardware whose true energy is known: an NVML library in C, a powercap tree."""

from __future__ import annotations

import dataclasses
import math
import shutil
import subprocess
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build(source: str, target: Path, *options: str) -> Path:
    """Compile one C file to a shared library."""
    subprocess.run([compiler(), "-O1", "-shared", "-fPIC", "-o", target, HERE / source, *options, "-lm"], check=True)
    return target


@dataclasses.dataclass(frozen=True)
class Power:
    """P(t) in W and its exact integral, as in fake_nvml.c."""

    kind: str
    a: float
    b: float = 0.0
    c: float = 1.0

    def line(self) -> str:
        return {"const": f"const {self.a}", "linear": f"linear {self.a} {self.b}"}.get(
            self.kind, f"square {self.a} {self.b} {self.c}"
        )

    def energy(self, t: float) -> float:
        """Joules from 0 to t."""
        if self.kind == "const":
            return self.a * t
        if self.kind == "linear":
            return self.a * t + self.b * t * t / 2
        half, whole = self.c / 2, math.floor(t / self.c)
        rest = t - whole * self.c
        part = self.a * rest if rest < half else self.a * half + self.b * (rest - half)
        return whole * (self.a + self.b) * half + part


class FakeGpus:
    """Writes fake_nvml.c's file, and knows the truth."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.t0 = time.monotonic()
        self.gpus: list[tuple[str, str, Power, list[str]]] = []

    def add(self, power: Power, *lines: str, uuid: str | None = None, name: str = "Fake-H100") -> str:
        uuid = uuid or f"GPU-{len(self.gpus):08d}-0000-0000-0000-000000000000"
        self.gpus.append((uuid, name, power, list(lines)))
        self.write()
        return uuid

    def write(self) -> None:
        text = f"t0 {self.t0!r}\n"
        for uuid, name, power, lines in self.gpus:
            text += "\n".join([f"gpu {uuid} {name}", power.line(), *lines]) + "\n"
        temporary = self.path.with_suffix(".new")
        temporary.write_text(text)
        temporary.replace(self.path)

    def now(self) -> float:
        """Time in the files' scale, for faults that shall begin soon."""
        return time.monotonic() - self.t0

    def truth(self, index: int, start: float, end: float) -> float:
        """Joules between two monotonic times."""
        power = self.gpus[index][2]
        return power.energy(end - self.t0) - power.energy(start - self.t0)


class FakePowercap:
    """A powercap tree: zones by folder name, the counter in µJ modulo the range."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def zone(
        self, folder: str, name: str, range_uj: int = 262_143_328_850, value: int = 0, limit_w: float = 300
    ) -> Path:
        path = self.root / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / "name").write_text(name + "\n")
        (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
        (path / "energy_uj").write_text(f"{value % range_uj}\n")
        (path / "constraint_0_max_power_uw").write_text(f"{int(limit_w * 1e6)}\n")
        return path


class RaplDriver:
    """A thread that moves the counters of zones along P(t): (path, watts, range, first value)."""

    def __init__(self, zones: list[tuple[Path, float, int, int]], period_s: float = 0.002) -> None:
        self.zones, self.period = zones, period_s
        self.t0 = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "RaplDriver":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self.period):
            for path, watts, span, first in self.zones:
                value = (first + int(1e6 * watts * (time.monotonic() - self.t0))) % span
                temporary = path / "new"
                temporary.write_text(f"{value}\n")
                temporary.replace(path / "energy_uj")
