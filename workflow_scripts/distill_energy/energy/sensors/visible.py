"""Which GPUs a process can use, by UUID. Pure: given the environment and what NVML shows.

CUDA's rules (CUDA C++ programming guide, environment variables): ``CUDA_VISIBLE_DEVICES`` is a list of indices or of
UUIDs (prefixes allowed) or MIG UUIDs; the first entry that does not exist ends the list; an empty list, ``-1`` or a
repeated device leaves nothing. Indices count the devices that the process may open: in a SLURM cgroup those are
renumbered from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...errors import UserError


@dataclass(frozen=True)
class GpuEntry:
    """One GPU as NVML shows it, in PCI order. ``migs``: MIG UUIDs on it; ``handle``: NVML index, for the reader."""

    uuid: str
    name: str | None = None
    accessible: bool = True
    migs: tuple[str, ...] = ()
    handle: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class VisibleGpu:
    """A GPU to measure. ``mig``: the slice of it that the process sees; its energy is the whole GPU's."""

    uuid: str
    mig: str | None = None


@dataclass(frozen=True)
class Visible:
    """Result of :func:`resolve_visible_gpus`; ``reason`` says why there is no GPU."""

    gpus: tuple[VisibleGpu, ...] = ()
    reason: str | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)


def resolve_visible_gpus(env: Mapping[str, str], inventory: Sequence[GpuEntry]) -> Visible:
    """The GPUs that CUDA would show to a process with this environment.

    Raises UserError where indices cannot be mapped (different models and CUDA's own order, fastest first).
    Never falls back to "all": a value that matches nothing leaves nothing.
    """
    usable = [gpu for gpu in inventory if gpu.accessible]
    if not usable:
        why = "no NVIDIA GPU" if not inventory else "no NVIDIA GPU that this process may open"
        return Visible(reason=why)
    value = env.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return Visible(gpus=tuple(VisibleGpu(gpu.uuid, gpu.migs[0] if gpu.migs else None) for gpu in usable))
    entries = [entry.strip() for entry in value.split(",")]
    if entries == [""]:
        return Visible(reason="CUDA_VISIBLE_DEVICES is empty: the process sees no GPU")
    found: list[VisibleGpu] = []
    notes: list[str] = []
    for entry in entries:
        match = _match(entry, usable, env)
        if match is None:
            if entry != "-1":
                notes.append(f"CUDA_VISIBLE_DEVICES: {entry!r} is no device here; it and what follows are not visible")
            break
        if match in found:
            return Visible(reason=f"CUDA_VISIBLE_DEVICES={value}: {entry!r} is repeated, CUDA shows no GPU")
        found.append(match)
    if not found:
        return Visible(reason=f"CUDA_VISIBLE_DEVICES={value}: the process sees no GPU", notes=tuple(notes))
    return Visible(gpus=tuple(found), notes=tuple(notes))


def narrowed(env: Mapping[str, str], inventory: Sequence[GpuEntry], count: int) -> tuple[str, int] | None:
    """(CUDA_VISIBLE_DEVICES for the first ``count`` of the visible GPUs, how many are visible); None if there are no
    more than that.

    Raises UserError as ``resolve_visible_gpus`` does.
    """
    visible = resolve_visible_gpus(env, inventory).gpus
    if len(visible) <= count:
        return None
    if (value := env.get("CUDA_VISIBLE_DEVICES")) is not None:
        entries = [entry.strip() for entry in value.split(",")]
    elif len({gpu.name for gpu in inventory if gpu.accessible}) == 1 and not any(gpu.mig for gpu in visible):
        entries = [str(index) for index in range(len(visible))]
    else:  # CUDA's order may be another one
        entries = [gpu.mig or gpu.uuid for gpu in visible]
    return ",".join(entries[:count]), len(visible)


def _match(entry: str, usable: Sequence[GpuEntry], env: Mapping[str, str]) -> VisibleGpu | None:
    if entry.isdigit():
        index = int(entry)
        if index >= len(usable):
            return None
        _assert_order(env, usable, entry)
        gpu = usable[index]
        return VisibleGpu(gpu.uuid, gpu.migs[0] if gpu.migs else None)
    if entry.startswith("MIG-"):
        return _match_mig(entry, usable)
    if entry.startswith("GPU-"):
        hits = [gpu for gpu in usable if gpu.uuid.startswith(entry)]
        return VisibleGpu(hits[0].uuid) if len(hits) == 1 else None
    return None


def _match_mig(entry: str, usable: Sequence[GpuEntry]) -> VisibleGpu | None:
    """``MIG-<uuid>`` (drivers from R470) or ``MIG-GPU-<parent uuid>/<gi>/<ci>`` (before)."""
    if entry.startswith("MIG-GPU-"):
        parent = entry.removeprefix("MIG-").split("/")[0]
        hits = [gpu for gpu in usable if gpu.uuid.startswith(parent)]
        return VisibleGpu(hits[0].uuid, entry) if len(hits) == 1 else None
    hits = [(gpu, mig) for gpu in usable for mig in gpu.migs if mig.startswith(entry)]
    return VisibleGpu(hits[0][0].uuid, hits[0][1]) if len(hits) == 1 else None


def _assert_order(env: Mapping[str, str], usable: Sequence[GpuEntry], entry: str) -> None:
    """NVML counts in PCI order, CUDA by default fastest first. They agree if all GPUs are of one model."""
    order = env.get("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    if order == "PCI_BUS_ID" or len({gpu.name for gpu in usable}) == 1:
        return
    raise UserError(
        f"CUDA_VISIBLE_DEVICES names GPU {entry} by index on a host with different GPUs, and CUDA_DEVICE_ORDER is "
        f"{order}: set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the GPU by its UUID"
    )


def resolve_visible_amd(env: Mapping[str, str], uuids: Sequence[str]) -> tuple[list[int], str | None, list[str]]:
    """(indices of the devices that HIP would show, why there is none, notes). ``uuids``: all devices, in HIP's order.

    ROCm's rules: ``ROCR_VISIBLE_DEVICES`` (indices or UUIDs) is applied first; ``HIP_VISIBLE_DEVICES``, or where it is
    not set ``CUDA_VISIBLE_DEVICES``, counts what is left. The first entry that does not exist ends a list.
    """
    if not uuids:
        return [], "no AMD GPU", []
    left, notes = list(range(len(uuids))), []
    second = "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in env else "CUDA_VISIBLE_DEVICES"
    for name in ("ROCR_VISIBLE_DEVICES", second):
        value = env.get(name)
        if value is None:
            continue
        kept: list[int] = []
        for entry in [entry.strip() for entry in value.split(",")] if value.strip() else []:
            hits = [i for i in left if uuids[i] == entry]
            if entry.isdigit() and int(entry) < len(left):
                hits = [left[int(entry)]]
            if len(hits) != 1:
                if entry != "-1":
                    notes.append(f"{name}: {entry!r} is no device here; it and what follows are not visible")
                break
            kept += [hit for hit in hits if hit not in kept]
        left = kept
        if not left:
            return [], f"{name}={value}: the process sees no GPU", notes
    return left, None, notes
