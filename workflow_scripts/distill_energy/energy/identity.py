"""Who an attempt is: host, boot, SLURM job, process. Imported by the sampler, so nothing heavy."""

from __future__ import annotations

import datetime as dt
import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

SCONTROL_S = 5.0


def utc(timestamp: float) -> str:
    """Unix seconds as ISO 8601 UTC with microseconds."""
    return dt.datetime.fromtimestamp(timestamp, dt.UTC).isoformat(timespec="microseconds")


def boot_id() -> str | None:
    """The kernel's id of this boot: monotonic times compare only within one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def process_start(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot: tells a process from a later one with the same pid."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields else None


def stat_fields(pid: int) -> list[str] | None:
    """``/proc/<pid>/stat`` from the third field (state) on; None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()  # the command in brackets may hold spaces and brackets


def idle_name(device: dict[str, Any]) -> str:
    """The name under which an idle baseline holds a journal's device: a part of a GPU has the idle power of its own."""
    name = device["device"] or device["component"]
    return f"{name} ({device['mig']})" if device.get("share", 1.0) != 1.0 else name


def attempt_identity(now: float) -> dict[str, Any]:
    """Fields of ``store.sidecar.Attempt`` that say who runs, with ``pid_start`` and an ``id`` nobody else makes."""
    host, boot, pid = socket.gethostname(), boot_id(), os.getpid()
    job = os.environ.get("SLURM_JOB_ID")
    restart, unknown = restarts(job)
    start = process_start(pid)
    stamp = dt.datetime.fromtimestamp(now, dt.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    who = f"slurm{job}.{restart or 0}" if job else "local"
    name = f"{stamp}-{host}-{(boot or 'noboot')[:8]}-{who}-{pid}-{start or 0}"
    return {
        "id": re.sub(r"[^A-Za-z0-9_.-]", "_", name),
        "host": host,
        "boot_id": boot,
        "pid": pid,
        "pid_start": start,
        "slurm_job_id": job,
        "slurm_node": os.environ.get("SLURMD_NODENAME"),
        "slurm_restart": restart,
        "slurm_restart_reason": unknown,
    }


def restarts(job: str | None) -> tuple[int | None, str | None]:
    """(how often SLURM has started this job again, why that is unknown). Both None outside a job.

    ``SLURM_RESTART_COUNT`` is the batch script's; a job step, as Snakemake's are, has to ask the controller.
    """
    if job is None:
        return None, None
    if (told := os.environ.get("SLURM_RESTART_COUNT", "")).isdigit():
        return int(told), None
    found, unknown = job_field(job, "Restarts")
    return (None, unknown) if found is None else (int(found), None)


def job_field(job: str, name: str) -> tuple[str | None, str | None]:
    """(what the controller says of a SLURM job, why that is unknown). Snakemake's job steps see a variable such as
    ``SLURM_JOB_NUM_NODES`` not at all, or that of the step."""
    command = ["scontrol", "show", "job", "--oneliner", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SCONTROL_S)
    except subprocess.TimeoutExpired:
        return None, f"scontrol did not answer within {SCONTROL_S:g} s"
    except OSError as error:
        return None, f"scontrol: {error.strerror}"
    found = re.search(rf"\b{name}=(\S+)", done.stdout)
    return (found[1], None) if found else (None, f"scontrol: {done.stderr.strip() or f'no {name}'}")


def alive(identity: dict[str, Any]) -> bool | None:
    """Whether the attempt's process still runs; None if it is on another host."""
    if identity.get("host") != socket.gethostname():
        return None
    if identity.get("boot_id") != boot_id():
        return False
    if not os.path.isdir("/proc/self"):  # macOS: that the id is some process's is all that can be known
        try:
            os.kill(identity["pid"], 0)
        except OSError as error:
            return isinstance(error, PermissionError)
        return True
    fields = stat_fields(identity["pid"])
    if not fields or fields[0] in "ZX":
        return False
    start = identity.get("pid_start")
    return start is None or int(fields[19]) == start
