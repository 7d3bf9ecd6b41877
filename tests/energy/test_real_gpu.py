"""On a real NVIDIA GPU: its counter and its power agree, and its UUID is what CUDA calls it."""

from __future__ import annotations

import time

import pytest

from distill_energy.energy import Meter, MeterConfig
from distill_energy.energy.sensors.nvml import Nvml


@pytest.mark.gpu
def test_counter_and_power_agree(tmp_path):
    nvml = Nvml()
    if nvml.problem or not nvml.inventory:
        pytest.skip(f"no NVIDIA GPU ({nvml.problem})")
    nvml.close()
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    with Meter(tmp_path / "a", MeterConfig(interval_s=0.1, cpu="off")) as meter:
        x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            x = (x @ x).clamp(-1, 1)
            torch.cuda.synchronize()
    parts = [c for c in meter.attempt.components if c.component == "gpu"]
    assert parts and all(c.gross_j is not None and c.gross_j > 0 for c in parts)
    assert meter.attempt.quality.largest_gap_s <= 0.3
    uuids = {f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(torch.cuda.device_count())}
    assert {c.device for c in parts} == uuids
    for part in parts:
        if part.method == "nvml_counter":
            assert part.crosscheck_j == pytest.approx(part.gross_j, rel=0.1)
