"""CodeCarbon's estimate of a process tree, in a process of its own.

CodeCarbon reads a table of CPUs with pandas (140 MB, 1.5 s), which neither the sampler nor the stage should carry.
Run as ``python -m distill_energy.energy.sensors.codecarbon_worker PID SECONDS``, or by a warm process; a line in, a
line out: ``{"t", "cpu_j", "ram_j"}``. ``ready`` is said once before. It ends at end-of-file.

CodeCarbon sees a process only while it lives, so that a command which starts many short ones seems to cost nothing.
``check_j`` is the same model (TDP × CPU time / CPUs) over the CPU time that the kernel kept, ended children included.

CodeCarbon 3.3.2 measures the process that creates it and its children. Its CPU and RAM objects keep that process in
``_process`` and ``_pid``: they are pointed at the stage instead, and it is checked that they exist.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

from ..identity import stat_fields
from ..processes import tree_cpu_s

KWH = 3.6e6  # J
CHECK_S = 10.0


def look_at_hardware() -> None:
    """What CodeCarbon finds out about the machine (1.4 s), kept for later trackers of this process and its forks."""
    _new_tracker(1.0)._ensure_hardware_ready()


def _new_tracker(seconds: float) -> Any:
    for name in [key for key in os.environ if key.startswith("CODECARBON_")]:
        del os.environ[name]  # a user's settings must not turn outputs on, or pue away from 1
    from codecarbon import OfflineEmissionsTracker

    return OfflineEmissionsTracker(
        country_iso_code="FRA",
        tracking_mode="process",
        measure_power_secs=seconds,
        output_methods=[],
        save_to_file=False,
        log_level="critical",
        gpu_ids=[],
        allow_multiple_runs=True,
        force_mode_cpu_load=True,
        pue=1.0,
    )


def make_tracker(pid: int, seconds: float) -> Any:
    """A started tracker of ``pid`` and its children. Writes no file, asks no network, prints nothing."""
    import psutil

    tracker = _new_tracker(seconds)
    tracker._ensure_hardware_ready()
    kinds = {type(part).__name__: part for part in tracker._hardware}
    cpu = kinds["CPU"]
    if not hasattr(cpu, "_process") or not hasattr(kinds["RAM"], "_pid"):
        raise RuntimeError("this CodeCarbon has no CPU._process or RAM._pid: it cannot follow another process")
    if cpu._mode != "cpu_load":
        raise RuntimeError(f"CodeCarbon would measure the whole machine ({cpu._mode}), not the process")
    cpu._process, cpu._pid = psutil.Process(pid), pid
    kinds["RAM"]._pid = pid
    tracker._hardware = [cpu, kinds["RAM"]]  # GPUs are read by NVML
    tracker.start()
    return tracker


def main(pid: int, seconds: float) -> None:
    """Answer on standard output what standard input asks, until ``stop`` or its end."""
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever CodeCarbon prints
    # CodeCarbon reads .codecarbon.config in the working folder and at home
    os.environ["HOME"] = "/nonexistent"
    os.chdir("/")
    lock, checked = threading.Lock(), -CHECK_S
    try:
        tracker = make_tracker(pid, seconds)
        cpu = next(part for part in tracker._hardware if type(part).__name__ == "CPU")
        print(json.dumps({"ready": {"model": cpu.get_model(), "tdp_w": cpu._tdp, "cpus": cpu._cpu_count}}), file=out)
    except Exception as error:
        print(json.dumps({"failed": f"CodeCarbon: {type(error).__name__}: {error}"}), file=out)
        return

    def check() -> float | None:
        """J by CPU time; None once the stage's process is gone (its children's time went with it)."""
        fields = stat_fields(pid)
        if not fields or fields[0] in "ZX":
            return None
        return tree_cpu_s(pid) * cpu._tdp / cpu._cpu_count

    def report(fresh: bool) -> None:
        nonlocal checked
        with lock:
            if fresh:
                tracker._measure_power_and_energy_if_stale()
            known = None
            if fresh or time.monotonic() - checked >= CHECK_S:
                known, checked = check(), time.monotonic()
            print(
                json.dumps(
                    {
                        "check_j": known,
                        "t": tracker._last_measured_time,  # perf_counter: the monotonic clock on Linux
                        "cpu_j": tracker._total_cpu_energy.kWh * KWH,
                        "ram_j": tracker._total_ram_energy.kWh * KWH,
                        "fresh": fresh,
                    }
                ),
                file=out,
            )

    for line in sys.stdin:
        command = line.strip()
        if command == "stop":
            with lock:
                tracker.stop()
                final = tracker.final_emissions_data
                last = {"cpu_j": final.cpu_energy * KWH, "ram_j": final.ram_energy * KWH}
                print(json.dumps({"t": time.monotonic(), **last, "final": True, "check_j": check()}), file=out)
            return
        report(fresh=command == "now")


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
