"""What a host lets us read: the devices of an attempt, and why others are missing. Used by the sampler."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .. import worker
from . import rapl
from .gpus import Gpus, Reader
from .node import Node

#: A reading as it is journalled: [counter, power, problem]; a device that CodeCarbon estimates adds its own time.
Reading = list[Any]


SKEW_S = 1e-3


class Device(Protocol):
    """Anything the sampler reads on each tick."""

    def describe(self) -> dict[str, Any]: ...

    def sample(self) -> Reading: ...


class Gpu:
    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def describe(self) -> dict[str, Any]:
        return self.reader.describe()

    def sample(self) -> Reading:
        counter, power, problem = self.reader.read()
        return [counter, power] if problem is None else [counter, power, problem]


class RaplZone:
    def __init__(self, zone: rapl.Zone) -> None:
        self.zone = zone

    def describe(self) -> dict[str, Any]:
        return self.zone.describe()

    def sample(self) -> Reading:
        counter, problem = self.zone.read()
        return [counter, None] if problem is None else [counter, None, problem]


class CodeCarbonProcess:
    """Pipe to the worker that runs CodeCarbon; ``poll`` keeps the newest line."""

    def __init__(self, pid: int, seconds: float, timeout_s: float = 60.0) -> None:
        asked, self.asks = os.pipe()
        self.fd, answers = os.pipe()
        self._end = _start(pid, seconds, asked, answers)
        os.close(asked)
        os.close(answers)
        os.set_blocking(self.fd, False)
        self.buffer = b""
        self.latest: dict[str, Any] | None = None
        self.problem: str | None = None
        first = self._line(timeout_s)
        if first is None:
            self.problem = "CodeCarbon did not start"
        elif "failed" in first:
            self.problem = first["failed"]
        else:
            self.ready = first["ready"]

    def _line(self, timeout_s: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self.buffer:
            if not select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            chunk = os.read(self.fd, 65536)
            if not chunk:
                return None
            self.buffer += chunk
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def _ask(self, command: str) -> bool:
        try:
            os.write(self.asks, command.encode() + b"\n")
            return True
        except OSError:
            self.problem = self.problem or "CodeCarbon's process ended early"
            return False

    def poll(self, now: bool = False, final: bool = False) -> dict[str, Any] | None:
        """The newest totals. ``now`` and ``final`` wait for a measurement up to this moment."""
        if self.problem:
            return self.latest
        if now or final:
            if self._ask("stop" if final else "now"):
                while (line := self._line(10.0)) is not None:
                    self.latest = line
                    if line.get("final") or (now and not final and line.get("fresh")):
                        break
            return self.latest
        self._ask("read")  # answered by the next beat; the answer has its own time
        while (line := self._line(0)) is not None:
            self.latest = line
        return self.latest

    def close(self) -> None:
        self._end()
        os.close(self.asks)
        os.close(self.fd)


def _start(pid: int, seconds: float, asked: int, answers: int) -> Callable[[], Any]:
    """Run CodeCarbon's worker, in a child of the warm process where there is one. Returns what kills it."""
    module = "distill_energy.energy.sensors.codecarbon_worker"
    with open(os.devnull, "wb") as nothing:
        if (connection := worker.connect()) is not None:
            with contextlib.suppress(OSError):
                streams = [asked, answers, nothing.fileno()]
                job = worker.Job(connection, f"{module}:main", {"pid": pid, "seconds": seconds}, streams)
                return lambda: (job.send(signal.SIGKILL), job.wait())
        command = [sys.executable, "-P", "-m", module, str(pid), str(seconds)]
        process = subprocess.Popen(command, stdin=asked, stdout=answers, stderr=nothing)
    return lambda: (process.kill(), process.wait())


class CodeCarbonPart:
    """CPU or RAM as CodeCarbon estimates it. ``latest`` is shared between the two."""

    def __init__(self, worker: CodeCarbonProcess, component: str) -> None:
        self.worker, self.component = worker, component
        self.key = "cpu_j" if component == "cpu" else "ram_j"

    def describe(self) -> dict[str, Any]:
        return {
            "component": self.component,
            "device": None,
            "kind": "codecarbon",
            "unit": 1.0,
            "counter": True,
            "power": False,
            "model": self.worker.ready,
        }

    def sample(self) -> Reading:
        latest = self.worker.latest
        if latest is None or (self.worker.problem and not latest.get("final")):
            return [None, None, self.worker.problem or "no value yet"]
        reading = [latest[self.key], None, self.worker.problem, latest["t"]]
        return [*reading, latest.get("check_j")] if self.component == "cpu" else reading


def unavailable(component: str, reason: str, in_total: bool) -> dict[str, Any]:
    """A component that is not read at all: a row of the journal's ``absent``."""
    return {"component": component, "reason": reason, "in_total": in_total}


def _holds_cpu(name: str | None) -> bool:
    """Whether a GPU is a module with the CPU in it (Grace Hopper, MI300A), so that its counter holds both."""
    return name is not None and re.search(r"\b(GH200|MI300A)\b", name) is not None


class Host:
    """All devices of one attempt, opened. ``absent`` holds what there is no device for."""

    def __init__(self, settings: Mapping[str, Any], env: Mapping[str, str], pid: int) -> None:
        self.devices: list[Device] = []
        self.absent: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.flags: list[str] = []
        self.gpus: list[Reader] = []
        self._gpus: Gpus | None = None
        self.codecarbon: CodeCarbonProcess | None = None
        if settings["gpu"]:
            self._open_gpus(env)
        else:
            self.absent.append(unavailable("gpu", "GPUs are left out by the settings", False))
        self._open_cpu(settings, pid)
        self.node = Node(settings["node"], settings["interval_s"]) if settings.get("node") else None
        if self.node is not None:
            self.devices.append(self.node)

    def describe(self) -> list[dict[str, Any]]:
        """Every device. A node's meter that is the total leaves its parts out of it."""
        described = [device.describe() for device in self.devices]
        if self.node is not None and self.node.settings.get("in_total"):
            described = [device | {"in_total": device["kind"] == "node"} for device in described]
            self.absent = [item | {"in_total": False} for item in self.absent]
        return described

    def _open_gpus(self, env: Mapping[str, str]) -> None:
        self._gpus = Gpus(env)
        self.gpus = self._gpus.readers
        self.notes += self._gpus.notes
        self.absent += [unavailable("gpu", reason, True) for reason in self._gpus.unreadable]
        if not self.gpus and not self._gpus.unreadable:
            self.absent.append(unavailable("gpu", "; ".join(self._gpus.none), False))
        for gpu in self.gpus:
            if gpu.share is None or gpu.share < 1:
                self.flags += ["shared_device", "share_by_rule"]
                self.notes.append(
                    f"{gpu.entry.uuid}: the GPU is measured whole; the stage is given {gpu.share_rule}"
                    if gpu.share is not None
                    else f"{gpu.entry.uuid}: no share of the GPU can be given to the stage: {gpu.share_rule}"
                )
        self.devices += [Gpu(gpu) for gpu in self.gpus]

    def _open_cpu(self, settings: Mapping[str, Any], pid: int) -> None:
        mode = settings["cpu"]
        if mode == "off":
            self.absent += [
                unavailable("cpu", "the CPU is left out by the settings (energy.cpu: off)", False),
                unavailable("dram", "left out by the settings (energy.cpu: off)", False),
            ]
            return
        zones = rapl.discover(settings["powercap"]) if mode != "codecarbon" else []
        readable = [zone for zone in zones if zone.error is None]
        if zones and (mode == "rapl" or any(zone.component == "cpu" for zone in readable)):
            self.devices += [RaplZone(zone) for zone in zones]
            if not any(zone.component == "dram" for zone in zones):
                self.absent.append(unavailable("dram", "RAPL has no dram zone on this CPU", False))
            return
        self.notes += [f"RAPL {zone.name}: {zone.error}" for zone in zones]
        if mode != "codecarbon" and (why := rapl.problem(settings["powercap"])):
            self.notes.append(f"RAPL: {why}")
        if mode == "rapl":
            self.absent.append(unavailable("cpu", f"no RAPL package under {settings['powercap']}", True))
            self.absent.append(unavailable("dram", f"no RAPL package under {settings['powercap']}", False))
            return
        if mode == "auto" and (module := next((gpu for gpu in self.gpus if _holds_cpu(gpu.entry.name)), None)):
            reason = f"{module.entry.name}: the module's counter holds the CPU and its memory already"
            self.absent += [unavailable("cpu", reason, False), unavailable("dram", reason, False)]
            self.notes.append(f"no CPU estimate on top: {reason}")
            return
        worker = CodeCarbonProcess(pid, settings["cpu_interval_s"])
        if worker.problem:
            self.absent.append(unavailable("cpu", worker.problem, True))
            self.absent.append(unavailable("dram", worker.problem, False))
            worker.close()
            return
        self.codecarbon = worker
        self.flags.append("estimated")
        self.devices += [CodeCarbonPart(worker, "cpu"), CodeCarbonPart(worker, "dram")]

    def sample(self, now: bool = False, final: bool = False) -> tuple[float, list[Reading]]:
        """(monotonic time, a reading of every device). ``now`` and ``final`` make CodeCarbon measure up to here.

        CodeCarbon goes last and its values have their own time: closing it takes 0.3 s, which is no part of a window.
        """
        readings, times = [], []
        for device in self.devices:
            began = time.monotonic()
            readings.append([] if isinstance(device, CodeCarbonPart) else device.sample())
            times.append((began + time.monotonic()) / 2)
        end = time.monotonic()
        for reading, t in zip(readings, times, strict=True):
            if reading and len(reading) < 4 and end - t > SKEW_S:  # a slow driver: keep each device's own time
                reading.extend([None] * (3 - len(reading)) + [t])
        if self.codecarbon is not None:
            self.codecarbon.poll(now, final)
            for index, device in enumerate(self.devices):
                if isinstance(device, CodeCarbonPart):
                    readings[index] = device.sample()
        return end, readings

    def health(self) -> list[list[int | None]]:
        """What explains each GPU's joules (see ``nvml.Health``), in the GPUs' order. Asked after the tick's energy."""
        return [gpu.health() for gpu in self.gpus]

    def close(self) -> None:
        if self.codecarbon is not None:
            self.codecarbon.close()
        if self._gpus is not None:
            self._gpus.close()
        if self.node is not None:
            self.node.close()
