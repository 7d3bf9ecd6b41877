"""Memory: what an allocation failure is called, and keeping freed memory for the next step."""

from __future__ import annotations

import ctypes

import torch

from .job import Job

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
#: PyTorch raises a plain RuntimeError where the host's memory ends.
ALLOCATION_FAILURES = ("can't allocate memory", "not enough memory", "out of memory")


def keep_freed_memory() -> bool:
    """Tell glibc to reuse large blocks instead of returning them to the kernel; returns whether it did.

    A training step on a CPU allocates and frees gradients of the size of the model. Returned to the kernel, each comes
    back as pages to be zeroed one by one, which took a quarter of the processor time of a small student's step.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(M_MMAP_MAX, 0)) and bool(libc.mallopt(M_TRIM_THRESHOLD, -1))
    except (OSError, AttributeError):
        return False


def out_of_memory(job: Job, error: BaseException) -> str | None:
    """One line on what to lower if ``error`` says that memory ran out, else None."""
    text = str(error)
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if not known and not (isinstance(error, RuntimeError) and any(words in text for words in ALLOCATION_FAILURES)):
        return None
    training = job.training
    size = training.micro_batch_size or training.batch_size
    return (
        f"{job.name}: out of memory with micro-batches of {size} examples; lower training.micro_batch_size, or set "
        f"training.gradient_checkpointing, training.precision: bf16_stochastic or training.lora ({text[:120]})"
    )
