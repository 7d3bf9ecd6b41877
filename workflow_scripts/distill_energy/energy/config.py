"""How a stage is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import UserError

CPU_MODES = ("auto", "rapl", "codecarbon", "off")
POWERCAP = "/sys/class/powercap"


@dataclass(frozen=True)
class MeterConfig:
    """Settings of a :class:`~distill_energy.energy.Meter`.

    ``interval_s``: seconds between samples. ``jitter``: share of the interval by which each sample is moved at random
    (0.5: ±25%), so that a load whose period is near the interval does not alias. ``cpu``: ``auto`` takes RAPL where it
    is readable, else CodeCarbon's estimate. ``powercap``: where the kernel shows RAPL. ``gpu``: False leaves GPUs out.
    ``cpu_interval_s``: seconds between CodeCarbon's samples. ``country``: ISO code, for the caller's use with
    :func:`~distill_energy.energy.co2e`. ``exclusive``: wait for other stages on the same GPU. ``node``: a meter of the
    whole node, as ``energy.node`` of a configuration (``command`` or ``csv``, ``unit``, ``offset_s``, ``in_total``).

    Raises UserError naming the key.
    """

    interval_s: float = 0.5
    jitter: float = 0.0
    country: str | None = None
    cpu: str = "auto"
    gpu: bool = True
    powercap: str = POWERCAP
    cpu_interval_s: float = 1.0
    exclusive: bool = True
    start_timeout_s: float = 120.0
    node: dict[str, Any] | None = None

    @classmethod
    def of(cls, energy: Mapping[str, Any]) -> MeterConfig:
        """From the ``energy`` section of a configuration."""
        return cls(**{key: energy[key] for key in ("interval_s", "jitter", "cpu")}, node=energy.get("node"))

    def __post_init__(self) -> None:
        if not 0.01 <= self.interval_s <= 60:
            raise UserError(f"energy.interval_s is {self.interval_s}: 0.01 to 60 seconds")
        if not 0 <= self.jitter <= 0.9:
            raise UserError(f"energy.jitter is {self.jitter}: 0 to 0.9 of the interval")
        if self.cpu not in CPU_MODES:
            raise UserError(f"energy.cpu is {self.cpu!r}: one of {', '.join(CPU_MODES)}")
        if not 0.1 <= self.cpu_interval_s <= 60:
            raise UserError(f"energy.cpu_interval_s is {self.cpu_interval_s}: 0.1 to 60 seconds")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
