"""GPUs through NVML (``pynvml``). Each value is read in its own try: one failing device leaves the others alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .visible import GpuEntry, Visible, resolve_visible_gpus

#: Temperature in °C, SM clock in MHz, utilisation in %, memory used in MiB, throttle reasons (bits); None: not known.
Health = list[int | None]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class Nvml:
    """An initialised NVML with its inventory. ``problem`` is set, and the inventory empty, where NVML fails."""

    def __init__(self) -> None:
        self.lib: Any = None
        self.problem: str | None = None
        self.inventory: list[GpuEntry] = []
        try:
            import pynvml
        except ImportError:
            self.problem = "the Python package nvidia-ml-py is not installed"
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.problem = f"NVML: {error}"
            return
        self.lib = pynvml
        try:
            self.inventory = [self._entry(index) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            self.problem = f"NVML: {error}"

    def _entry(self, index: int) -> GpuEntry:
        lib = self.lib
        try:
            handle = lib.nvmlDeviceGetHandleByIndex(index)
        except lib.NVMLError as error:
            # NO_PERMISSION is how a cgroup hides a device. Other errors: it exists and is counted, unreadable.
            hidden = error.value == lib.NVML_ERROR_NO_PERMISSION
            return GpuEntry(f"index-{index}", accessible=not hidden, handle=index, error=f"NVML: {error}")
        try:
            uuid = _text(lib.nvmlDeviceGetUUID(handle))
        except lib.NVMLError as error:
            return GpuEntry(f"index-{index}", handle=index, error=f"NVML: {error}")
        return GpuEntry(uuid, name=self._name(handle), migs=tuple(self._migs(handle)), handle=index)

    def _name(self, handle: Any) -> str | None:
        try:
            return _text(self.lib.nvmlDeviceGetName(handle))
        except self.lib.NVMLError:
            return None

    def _migs(self, handle: Any) -> list[str]:
        lib, found = self.lib, []
        try:
            if not lib.nvmlDeviceGetMigMode(handle)[0]:
                return []
            for slot in range(lib.nvmlDeviceGetMaxMigDeviceCount(handle)):
                try:
                    found.append(_text(lib.nvmlDeviceGetUUID(lib.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot))))
                except lib.NVMLError:
                    continue
        except lib.NVMLError:
            return []
        return found

    def close(self) -> None:
        if self.lib is not None:
            with contextlib.suppress(self.lib.NVMLError):
                self.lib.nvmlShutdown()


class GpuReader:
    """One GPU: reads (counter in mJ, power in mW, errors)."""

    def __init__(self, nvml: Nvml, entry: GpuEntry, mig: str | None) -> None:
        self.lib, self.entry, self.mig = nvml.lib, entry, mig
        self.handle: Any = None
        self.error = entry.error
        if self.error is None:
            try:
                self.handle = self.lib.nvmlDeviceGetHandleByIndex(entry.handle)
            except self.lib.NVMLError as error:
                self.error = f"NVML: {error}"
        self.has_counter = self._supports(self._counter)
        self.has_power = self._supports(self._power)
        lib = self.lib
        self._lacking: set[str] = set()
        self._never = {getattr(lib, f"NVML_ERROR_{name}", None) for name in ("NOT_SUPPORTED", "FUNCTION_NOT_FOUND")}
        self._health = {
            "temperature_c": lambda: lib.nvmlDeviceGetTemperature(self.handle, lib.NVML_TEMPERATURE_GPU),
            "sm_clock_mhz": lambda: lib.nvmlDeviceGetClockInfo(self.handle, lib.NVML_CLOCK_SM),
            "utilisation": lambda: lib.nvmlDeviceGetUtilizationRates(self.handle).gpu,
            "memory_mib": lambda: lib.nvmlDeviceGetMemoryInfo(self.handle).used >> 20,
            "throttle": lambda: lib.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle),
        }

    def _supports(self, read: Any) -> bool:
        if self.handle is None:
            return False
        try:
            read()
            return True
        except self.lib.NVMLError as error:
            # a momentary error is no proof of absence: ask again on each tick
            return error.value != self.lib.NVML_ERROR_NOT_SUPPORTED

    def _counter(self) -> int:
        return self.lib.nvmlDeviceGetTotalEnergyConsumption(self.handle)

    def _power(self) -> int:
        return self.lib.nvmlDeviceGetPowerUsage(self.handle)

    def read(self) -> tuple[int | None, int | None, str | None]:
        if self.handle is None:
            return None, None, self.error
        counter = power = problem = None
        if self.has_counter:
            try:
                counter = self._counter()
            except self.lib.NVMLError as error:
                problem = f"counter: {error}"
        if self.has_power:
            try:
                power = self._power()
            except self.lib.NVMLError as error:
                problem = f"{problem}; power: {error}" if problem else f"power: {error}"
        return counter, power, problem

    def health(self) -> Health:
        """What explains a joule, each value in its own try; what the device has not is not asked again."""
        found: Health = []
        for name, read in self._health.items():
            try:
                found.append(None if self.handle is None or name in self._lacking else read())
            except Exception as error:  # an old driver without the call raises another class
                if getattr(error, "value", None) in self._never:
                    self._lacking.add(name)
                found.append(None)
        return found

    def hot_c(self) -> float | None:
        """Temperature at which the driver slows the device down."""
        for name in ("NVML_TEMPERATURE_THRESHOLD_GPU_MAX", "NVML_TEMPERATURE_THRESHOLD_SLOWDOWN"):
            try:
                return float(self.lib.nvmlDeviceGetTemperatureThreshold(self.handle, getattr(self.lib, name)))
            except Exception:
                continue
        return None

    def limit_w(self) -> float | None:
        try:
            return self.lib.nvmlDeviceGetEnforcedPowerLimit(self.handle) / 1000
        except Exception:
            return None

    def pids(self) -> list[int] | None:
        """Processes on the device; None where NVML does not tell."""
        if self.handle is None:
            return None
        try:
            running = self.lib.nvmlDeviceGetComputeRunningProcesses(self.handle)
        except Exception:
            return None
        return [process.pid for process in running]

    def describe(self) -> dict[str, Any]:
        """The journal's description of the device; ``unit`` is J per count."""
        return {
            "component": "gpu",
            "device": self.entry.uuid,
            "name": self.entry.name,
            "kind": "gpu",
            "unit": 1e-3,
            "counter": self.has_counter,
            "power": self.has_power,
            "limit_w": self.limit_w() if self.handle is not None else None,
            "mig": self.mig,
            "hot_c": self.hot_c() if self.handle is not None else None,
            "error": self.error,
        }


def driver_shows_gpu() -> bool:
    """Whether the kernel has an NVIDIA GPU, whatever NVML says."""
    folder = Path("/proc/driver/nvidia/gpus")
    try:
        return any(folder.iterdir())
    except OSError:
        return os.path.exists("/dev/nvidia0")


def open_gpus(env: Mapping[str, str]) -> tuple[Nvml, list[GpuReader], Visible]:
    """NVML, a reader for each visible GPU, and how they were found. Raises UserError on an ambiguous index."""
    nvml = Nvml()
    visible = resolve_visible_gpus(env, nvml.inventory)
    entries = {gpu.uuid: gpu for gpu in nvml.inventory}
    slices: dict[str, list[str]] = {}  # one reader a GPU, however many slices of it are visible: they share a counter
    for gpu in visible.gpus:
        slices.setdefault(gpu.uuid, []).extend([gpu.mig] if gpu.mig else [])
    readers = [GpuReader(nvml, entries[uuid], ", ".join(migs) or None) for uuid, migs in slices.items()]
    return nvml, readers, visible
