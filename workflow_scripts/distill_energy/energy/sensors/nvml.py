"""GPUs through NVML (``pynvml``). Each value is read in its own try: one failing device leaves the others alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from .visible import GpuEntry, Visible, narrowed, resolve_visible_gpus

#: Temperature in °C, SM clock in MHz, utilisation in %, memory used in MiB, throttle reasons (bits); None: not known.
Health = list[int | None]

#: What a power reading is: the mean of the last second, or the power at that moment.
PowerKind = Literal["average", "instant"]
#: NVML_FI_DEV_POWER_AVERAGE and _INSTANT, in the order in which they are asked for.
_POWER_FIELDS: dict[PowerKind, int] = {"average": 185, "instant": 186}
#: nvmlValueType_t → member of nvmlValue_t.
_VALUE_TYPES = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


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
        return GpuEntry(uuid, name=self._name(handle), migs=tuple(self.mig_handles(handle)), handle=index)

    def _name(self, handle: Any) -> str | None:
        try:
            return _text(self.lib.nvmlDeviceGetName(handle))
        except self.lib.NVMLError:
            return None

    def mig_handles(self, handle: Any) -> dict[str, Any]:
        """The slices of a GPU that can be seen: UUID → NVML handle."""
        lib, found = self.lib, {}
        try:
            if not lib.nvmlDeviceGetMigMode(handle)[0]:
                return {}
            for slot in range(lib.nvmlDeviceGetMaxMigDeviceCount(handle)):
                try:
                    mig = lib.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)
                    found[_text(lib.nvmlDeviceGetUUID(mig))] = mig
                except lib.NVMLError:
                    continue
        except lib.NVMLError:
            return {}
        return found

    def close(self) -> None:
        if self.lib is not None:
            with contextlib.suppress(self.lib.NVMLError):
                self.lib.nvmlShutdown()


class GpuReader:
    """One GPU: reads (counter in mJ, power in mW, errors)."""

    def __init__(self, nvml: Nvml, entry: GpuEntry, mig: str | None) -> None:
        self.lib, self.entry, self.mig = nvml.lib, entry, mig
        self.power_kind: PowerKind | None = None
        self.handle: Any = None
        self.error = entry.error
        if self.error is None:
            try:
                self.handle = self.lib.nvmlDeviceGetHandleByIndex(entry.handle)
            except self.lib.NVMLError as error:
                self.error = f"NVML: {error}"
        self.has_counter = self._supports(self._counter)
        self.power_kind = self._power_kind()
        self.has_power = self.power_kind is not None or self._supports(self._power)
        self.share, self.share_rule = self._mig_share(nvml)
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
        if self.power_kind is not None:
            return self._field(_POWER_FIELDS[self.power_kind])
        return self.lib.nvmlDeviceGetPowerUsage(self.handle)

    def _field(self, number: int) -> int:
        (value,) = self.lib.nvmlDeviceGetFieldValues(self.handle, [number])
        if value.nvmlReturn != self.lib.NVML_SUCCESS:
            raise self.lib.NVMLError(value.nvmlReturn)
        return int(getattr(value.value, _VALUE_TYPES[value.valueType]))

    def _power_kind(self) -> PowerKind | None:
        """Which power the driver gives by name: the mean of the last second rather than the instantaneous one, which
        aliases. None: only ``nvmlDeviceGetPowerUsage``, which is one or the other by the card's generation."""
        for kind, number in _POWER_FIELDS.items():
            with contextlib.suppress(Exception):  # an old driver without the call raises another class
                self._field(number)
                return kind
        return None

    def _mig_share(self, nvml: Nvml) -> tuple[float | None, str | None]:
        """(share of the GPU's joules that the visible slices get, the rule or why there is none); (1, None) without
        slices. The rule: their multiprocessors over those of an instance of the whole GPU, so that the shares of
        slices in different containers, which do not see each other, never add up to more than the GPU."""
        if not self.mig:
            return 1.0, None
        lib, wanted = self.lib, [name.strip() for name in self.mig.split(",")]
        try:
            slices = nvml.mig_handles(self.handle)
            own = sum(lib.nvmlDeviceGetAttributes(slices[name]).multiprocessorCount for name in wanted)
        except Exception as error:
            return None, f"multiprocessors of {self.mig} are not known ({type(error).__name__}: {error})"
        whole = 0
        for profile in range(lib.NVML_GPU_INSTANCE_PROFILE_COUNT):
            with contextlib.suppress(Exception):
                info = lib.nvmlDeviceGetGpuInstanceProfileInfo(self.handle, profile)
                whole = max(whole, info.multiprocessorCount)
        if not 0 < own <= whole:
            return None, f"{own} multiprocessors of {self.mig}, {whole or 'unknown'} of the whole GPU"
        return own / whole, f"{own} of {whole} multiprocessors ({self.mig})"

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

    def memory_bytes(self) -> int | None:
        with contextlib.suppress(Exception):
            return self.lib.nvmlDeviceGetMemoryInfo(self.handle).total
        return None

    def driver(self) -> str | None:
        with contextlib.suppress(Exception):
            return _text(self.lib.nvmlSystemGetDriverVersion())
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
        return described(self, "nvml", 1e-3)


def described(reader: Any, vendor: str, unit: float) -> dict[str, Any]:
    """What the journal says of a GPU, from its reader (``gpus.Reader``); ``unit``: J a count of its counter."""
    return {
        "component": "gpu",
        "device": reader.entry.uuid,
        "name": reader.entry.name,
        "kind": "gpu",
        "vendor": vendor,
        "unit": unit,
        "counter": reader.has_counter,
        "power": reader.has_power,
        "limit_w": reader.limit_w(),
        "mig": reader.mig,
        "power_kind": reader.power_kind,
        "share": reader.share,
        "share_rule": reader.share_rule,
        "hot_c": reader.hot_c(),
        "error": reader.error,
    }


def driver_shows_gpu() -> bool:
    """Whether the kernel has an NVIDIA GPU, whatever NVML says."""
    folder = Path("/proc/driver/nvidia/gpus")
    try:
        return any(folder.iterdir())
    except OSError:
        return os.path.exists("/dev/nvidia0")


def narrowed_to(count: int) -> tuple[str, int] | None:
    """As ``visible.narrowed``, of this process's GPUs."""
    nvml = Nvml()
    try:
        return narrowed(os.environ, nvml.inventory, count)
    finally:
        nvml.close()


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
