"""The prerun stage: what this host draws when idle, what it reaches under load, and whether it is the right host."""

from __future__ import annotations

import time
from typing import Any

from .config.params import PrerunParams
from .config.schema import ExpectHardware
from .context import Context
from .errors import UserError
from .store import atomic


def main(ctx: Context[PrerunParams]) -> dict[str, Any]:
    """Check the hardware, measure the idle baseline and the host's efficiency.

    Writes ``idle.parquet`` (a row a device: watts, stability) and ``calibration.parquet`` (a row a workload: FLOP/s
    and W reached). Raises UserError where the host is not what the configuration expects.
    """
    from .energy import MeterConfig, measure_idle
    from .energy.host import describe_hardware

    hardware = describe_hardware()
    check_hardware(hardware, ctx.params.expect or ExpectHardware())
    energy = ctx.spec.energy
    config = MeterConfig.of(energy)
    cooldown = cool_down(ctx, ctx.params.cooldown_c)
    baseline = measure_idle(config, ctx.params.idle_seconds)
    baseline.write(ctx.out / "idle.parquet")
    rows = calibrate(ctx, ctx.params.calibration_seconds)
    _write_calibration(ctx.out / "calibration.parquet", rows)
    return {
        "cpu": hardware.cpu,
        "gpus": [gpu.name for gpu in hardware.gpus],
        "calibrated": bool(rows),
        **({} if cooldown is None else {"cooldown": cooldown}),
    }


COOLDOWN_S, COOLDOWN_STEP_S = 600.0, 1.0


def cool_down(ctx: Context[PrerunParams], limit_c: float | None) -> dict[str, Any] | None:
    """Wait until no visible GPU is warmer than ``limit_c``, in a phase of its own; None where nothing is asked.

    Returns ``reached`` (null, with a ``reason``, where no GPU tells its temperature), the ``seconds`` waited and the
    hottest GPU's temperature before and after, in °C. A host that is still warm after ten minutes is measured as it is.
    """
    if limit_c is None:
        return None
    import os

    from .energy.sensors.gpus import Gpus

    gpus = Gpus(os.environ)

    def hottest() -> int | None:
        return max((t for reader in gpus.readers if (t := reader.health()[0]) is not None), default=None)

    try:
        first = last = hottest()
        if first is None:
            return {"reached": None, "reason": "no GPU tells its temperature"}
        with ctx.meter.phase("cooldown"):
            began = time.monotonic()
            while last is not None and last > limit_c and time.monotonic() - began < COOLDOWN_S:
                time.sleep(COOLDOWN_STEP_S)
                last = hottest()
            seconds = time.monotonic() - began
    finally:
        gpus.close()
    reached = None if last is None else last <= limit_c
    ctx.log(f"cooled from {first} to {last} °C in {seconds:.0f} s (prerun.cooldown_c is {limit_c:g})")
    return {"reached": reached, "seconds": seconds, "before_c": first, "after_c": last}


def check_hardware(hardware: Any, expect: ExpectHardware) -> None:
    """Raise UserError naming the first expectation that the host does not meet."""
    names = [gpu.name or "?" for gpu in hardware.gpus]
    wanted = expect.gpu_name
    if wanted is not None and not (names and all(wanted.lower() in name.lower() for name in names)):
        raise UserError(f"energy.expect.gpu_name is {wanted!r}, this host has {', '.join(names) or 'no GPU'}")
    count = expect.gpu_count
    if count is not None and len(names) != count:
        raise UserError(f"energy.expect.gpu_count is {count}, this host shows {len(names)}")
    cores = expect.min_cores
    if cores is not None and (hardware.cores or 0) < cores:
        raise UserError(f"energy.expect.min_cores is {cores}, this host has {hardware.cores}")


def calibrate(ctx: Context[PrerunParams], seconds: float) -> list[dict[str, Any]]:
    """Matrix products for ``seconds`` on the device and type that training uses: FLOP/s and W reached.

    The FLOPs of one (n × n)·(n × n) product are 2n³. W is the meter's energy over the phase's seconds; null, with the
    reason, where the phase's energy is unknown.
    """
    if seconds <= 0:
        return []
    import torch

    from .models.sources import model_dtype

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = model_dtype("auto")
    size = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = left @ right  # warm-up
    done = 0
    with ctx.meter.phase("calibration") as phase:
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            product = left @ right
            if device == "cuda":
                torch.cuda.synchronize()
            done += 1
        elapsed = time.monotonic() - start
    del product
    joules = getattr(phase, "joules", None)
    return [
        {
            "workload": "matmul",
            "device": device,
            "dtype": str(dtype).removeprefix("torch."),
            "flops_per_s": 2.0 * size**3 * done / elapsed,
            "seconds": elapsed,
            "watts": joules / elapsed if joules is not None else None,
            "reason": None if joules is not None else "the phase's energy is unknown",
        }
    ]


def _write_calibration(path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    schema = pa.schema(
        [
            ("workload", pa.string()),
            ("device", pa.string()),
            ("dtype", pa.string()),
            ("flops_per_s", pa.float64()),
            ("seconds", pa.float64()),
            ("watts", pa.float64()),
            ("reason", pa.string()),
        ]
    )
    atomic.write_parquet(path, pa.Table.from_pylist(rows, schema=schema))
