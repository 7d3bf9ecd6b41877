"""Fake hardware for the meter's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import fakes


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory) -> Path:
    """Folder with our libnvidia-ml.so.1."""
    if fakes.compiler() is None:
        pytest.skip("no C compiler: the fake libnvidia-ml.so.1 cannot be built")
    folder = tmp_path_factory.mktemp("nvml")
    fakes.build("fake_nvml.c", folder / "libnvidia-ml.so.1")
    return folder


@pytest.fixture
def gpus(nvml_library, tmp_path, monkeypatch) -> fakes.FakeGpus:
    """Fake GPUs that every process started from now on sees through the real pynvml."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_library))
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "nvml.txt"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fakes.FakeGpus(tmp_path / "nvml.txt")


@pytest.fixture
def powercap(tmp_path) -> fakes.FakePowercap:
    return fakes.FakePowercap(tmp_path / "powercap")


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    """Tests neither wait for the machine's real meters nor show up among them."""
    monkeypatch.setenv("DISTILL_ENERGY_LOCKS", str(tmp_path / "locks"))
    monkeypatch.delenv("DISTILL_ENERGY_GPUS_HELD", raising=False)


@pytest.fixture(autouse=True)
def importable(repo, monkeypatch):
    """Processes that a test starts find the package too."""
    monkeypatch.setenv("PYTHONPATH", str(repo / "workflow_scripts"))
