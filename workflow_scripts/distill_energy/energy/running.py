"""The running total that the sampler publishes on each tick. Plain sums; the final figures come from ``account``."""

from __future__ import annotations

from typing import Any

MOST_W = 5000.0  # of one GPU


class RunningTotal:
    """Gross J since the first tick over the components that belong to the total; None if one is unknown."""

    def __init__(self, devices: list[dict[str, Any]], absent: list[dict[str, Any]], lost_s: float) -> None:
        """``lost_s``: a device that was not read for so long makes the total unknown until it is read again."""
        self.lost_s = lost_s
        self.devices = devices
        self.unknown = any(item["in_total"] for item in absent) or any(d.get("share", 1.0) is None for d in devices)
        self.joules = [0.0] * len(devices)
        self.last: list[tuple[float, Any, Any] | None] = [None] * len(devices)

    def add(self, t: float, values: list[list[Any]], share: float = 1.0) -> float | None:
        for index, (device, value) in enumerate(zip(self.devices, values, strict=True)):
            own = device.get("share", 1.0) or 0.0
            self._step(index, device, t, value, share if device["kind"] == "rapl" else own)
        wanted = [i for i, device in enumerate(self.devices) if in_total(device)]
        if self.unknown or not wanted or any(self._lost(i, t) for i in wanted):
            return None
        return sum(self.joules[i] for i in wanted)

    def _lost(self, index: int, t: float) -> bool:
        last = self.last[index]
        patience = max(self.lost_s, 10.0) if self.devices[index]["kind"] in ("codecarbon", "node") else self.lost_s
        return last is None or t - last[0] > patience

    def _step(self, index: int, device: dict[str, Any], t: float, value: list[Any], share: float) -> None:
        counter, power = value[0], value[1]
        if counter is None and power is None:
            return
        t = value[3] if len(value) > 3 else t
        previous = self.last[index]
        self.last[index] = (t, counter, power)
        if previous is None:
            return
        t0, c0, p0 = previous
        if counter is not None and c0 is not None:
            delta = counter - c0
            wrapped = delta + (device.get("range") or 0)
            # a GPU's counter may also have started again: a wrap is what the card can have drawn
            if delta < 0 and (device["kind"] == "rapl" or wrapped * device["unit"] <= MOST_W * (t - t0 + 1.0)):
                delta = wrapped
            if delta >= 0:
                self.joules[index] += delta * device["unit"] * share
                return
        if power is not None and p0 is not None:
            self.joules[index] += (t - t0) * (power + p0) / 2 * 1e-3 * share


def in_total(device: dict[str, Any]) -> bool:
    """CodeCarbon's RAM is a flat model of the number of modules, not of the work: shown, not counted."""
    return device.get("in_total", not (device["kind"] == "codecarbon" and device["component"] == "dram"))
