"""AMD GPUs through AMD SMI's Python package ``amdsmi``, behind the same interface as ``nvml.GpuReader``.

The accumulator of ``amdsmi_get_energy_count`` times its resolution (µJ a count) is the energy, and the power of
``amdsmi_get_power_info`` the cross-check. A GPU in partitions (XCDs of an MI300) has one accumulator: it is one device,
and a stage that sees some of its partitions is given their share, since partitions of one mode are equal.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .nvml import Health, PowerKind, described
from .visible import GpuEntry, resolve_visible_amd

NOT_SUPPORTED = (2, 3)  # AMDSMI_STATUS_NOT_SUPPORTED, AMDSMI_STATUS_NOT_YET_IMPLEMENTED
_KFD = "/sys/class/kfd/kfd/topology/nodes"


def driver_shows_amd(nodes: str = _KFD) -> bool:
    """Whether the kernel's compute driver has a GPU that is no part of a CPU, or a ROCm with AMD SMI is named."""
    for properties in Path(nodes).glob("*/properties"):
        with contextlib.suppress(OSError, ValueError):
            facts = dict(line.split()[:2] for line in properties.read_text(encoding="ascii").splitlines() if line)
            if int(facts.get("simd_count", 0)) > 0 and int(facts.get("cpu_cores_count", 0)) == 0:
                return True
    rocm = os.environ.get("ROCM_HOME", os.environ.get("ROCM_PATH"))
    return rocm is not None and (Path(rocm) / "lib" / "libamd_smi.so").exists()


class Amd:
    """An initialised AMD SMI. ``devices``: what HIP shows a process, in HIP's order (partitions apart): (handle, UUID,
    physical GPU). ``problem`` is set, and the inventory empty, where it fails."""

    def __init__(self) -> None:
        self.lib: Any = None
        self.problem: str | None = None
        self.devices: list[tuple[Any, str, str]] = []
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints where it finds no library
                import amdsmi
        except ImportError:
            self.problem = "the Python package amdsmi is not installed (ROCm has the one that fits its driver)"
            return
        except Exception as error:  # a library of another version lacks a symbol: KeyError, AttributeError
            self.problem = f"amdsmi finds no AMD SMI library that fits it ({type(error).__name__}: {error})"
            return
        try:
            amdsmi.amdsmi_init()
            self.lib = amdsmi
            found = [self._device(handle) for handle in amdsmi.amdsmi_get_processor_handles()]
        except amdsmi.AmdSmiException as error:
            self.problem = f"AMD SMI: {_line(error)}"
            return
        self.devices = [device[1:] for device in sorted(found, key=lambda device: device[0])]

    def _device(self, handle: Any) -> tuple[Any, Any, str, str]:
        lib = self.lib
        bdf = lib.amdsmi_get_gpu_device_bdf(handle)
        physical = bdf.rpartition(".")[0]
        order, uuid = (1 << 32, bdf), None
        with contextlib.suppress(Exception):  # an older AMD SMI has not this call: PCI order, as HIP's
            known = lib.amdsmi_get_gpu_enumeration_info(handle)
            order, uuid = (int(known["hip_id"]), bdf), known["hip_uuid"]
        if not uuid:
            with contextlib.suppress(Exception):
                uuid = "GPU-" + lib.amdsmi_get_gpu_asic_info(handle)["asic_serial"].removeprefix("0x").lower()
        return order, handle, uuid or f"bdf-{bdf}", physical

    def close(self) -> None:
        if self.lib is not None:
            with contextlib.suppress(Exception):
                self.lib.amdsmi_shut_down()


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _number(value: Any) -> float | None:
    """A figure, or None where AMD SMI says that it has none (``N/A``, all bits set)."""
    return None if isinstance(value, str) or value in (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF) else float(value)


class AmdReader:
    """One physical GPU: reads (accumulator in its counts, power in mW, errors)."""

    def __init__(self, amd: Amd, physical: str, seen: list[str]) -> None:
        self.lib = amd.lib
        parts = [(handle, uuid) for handle, uuid, where in amd.devices if where == physical]
        self.handle = parts[0][0]
        self.error: str | None = None
        self.unit: float | None = None  # J per count
        for handle, _ in parts:  # the accumulator is the first partition's
            with contextlib.suppress(Exception):
                resolution = self.lib.amdsmi_get_energy_count(handle)["counter_resolution"]
                if resolution > 0:
                    self.handle, self.unit = handle, resolution * 1e-6
                    break
        self.has_counter = self.unit is not None
        self.power_kind: PowerKind | None = None
        self._power_key: str | None = None
        self._find_power()
        self.has_power = self._power_key is not None
        if not self.has_counter and not self.has_power:
            self.error = "AMD SMI has neither an energy accumulator nor a power for it"
        self.entry = GpuEntry(parts[0][1], name=self._name(), error=self.error)
        self.mig = ", ".join(seen) if len(parts) > 1 else None
        self.share = len(seen) / len(parts)
        self.share_rule = f"{len(seen)} of {len(parts)} partitions ({', '.join(seen)})" if len(parts) > 1 else None

    def _find_power(self) -> None:
        """The current power where there is one (MI300 and later), else the mean, over a time that is not told."""
        with contextlib.suppress(Exception):
            found = self.lib.amdsmi_get_power_info(self.handle)
            for key, kind in (("current_socket_power", "instant"), ("average_socket_power", None)):
                if _number(found.get(key, "N/A")):
                    self._power_key, self.power_kind = key, kind
                    return

    def _name(self) -> str | None:
        with contextlib.suppress(Exception):
            return self.lib.amdsmi_get_gpu_asic_info(self.handle)["market_name"] or None
        return None

    def read(self) -> tuple[int | None, int | None, str | None]:
        counter = power = problem = None
        if self.has_counter:
            try:
                counter = self.lib.amdsmi_get_energy_count(self.handle)["energy_accumulator"]
            except Exception as error:
                problem = f"counter: {_line(error)}"
        if self.has_power:
            try:
                watts = _number(self.lib.amdsmi_get_power_info(self.handle)[self._power_key])
                power = None if watts is None else round(1000 * watts)
            except Exception as error:
                problem = f"{problem}; power: {_line(error)}" if problem else f"power: {_line(error)}"
        return counter, power, problem or self.error

    def health(self) -> Health:
        lib = self.lib
        asks = (
            lambda: lib.amdsmi_get_temp_metric(
                self.handle, lib.AmdSmiTemperatureType.HOTSPOT, lib.AmdSmiTemperatureMetric.CURRENT
            ),
            lambda: lib.amdsmi_get_clock_info(self.handle, lib.AmdSmiClkType.GFX)["clk"],
            lambda: lib.amdsmi_get_gpu_activity(self.handle)["gfx_activity"],
            lambda: lib.amdsmi_get_gpu_memory_usage(self.handle, lib.AmdSmiMemoryType.VRAM) >> 20,
        )
        found: Health = []
        for ask in asks:
            try:
                value = _number(ask())
            except Exception:
                value = None
            found.append(None if value is None else int(value))
        return [*found, None]  # AMD SMI has no bits like NVML's throttle reasons

    def hot_c(self) -> float | None:
        lib = self.lib
        with contextlib.suppress(Exception):
            kind, metric = lib.AmdSmiTemperatureType.HOTSPOT, lib.AmdSmiTemperatureMetric.CRITICAL
            return _number(lib.amdsmi_get_temp_metric(self.handle, kind, metric)) or None
        return None

    def limit_w(self) -> float | None:
        with contextlib.suppress(Exception):
            cap = _number(self.lib.amdsmi_get_power_cap_info(self.handle)["power_cap"])
            return None if not cap else cap * 1e-6 if cap > 1e5 else cap  # µW; W in early releases
        return None

    def pids(self) -> list[int] | None:
        try:
            return [process["pid"] for process in self.lib.amdsmi_get_gpu_process_list(self.handle)]
        except Exception:
            return None

    def memory_bytes(self) -> int | None:
        with contextlib.suppress(Exception):
            return self.lib.amdsmi_get_gpu_memory_total(self.handle, self.lib.AmdSmiMemoryType.VRAM)
        return None

    def driver(self) -> str | None:
        with contextlib.suppress(Exception):
            return self.lib.amdsmi_get_gpu_driver_info(self.handle)["driver_version"]
        return None

    def describe(self) -> dict[str, Any]:
        return described(self, "amdsmi", self.unit or 1.0) | {"range": 1 << 64}


def open_amd(env: Mapping[str, str]) -> tuple[Amd, list[AmdReader], str | None, list[str]]:
    """AMD SMI, a reader for each physical GPU of which HIP would show a part, why there is none, and notes."""
    amd = Amd()
    seen, reason, notes = resolve_visible_amd(env, [uuid for _, uuid, _ in amd.devices])
    by_gpu: dict[str, list[str]] = {}
    for index in seen:
        _, uuid, physical = amd.devices[index]
        by_gpu.setdefault(physical, []).append(uuid)
    return amd, [AmdReader(amd, physical, names) for physical, names in by_gpu.items()], reason, notes
