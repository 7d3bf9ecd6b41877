"""Figures of the meter against known truth: ``python benchmarks/meter.py [--long]``.

Fake GPUs follow an analytic P(t) in a C library that the real pynvml loads; everything else is real. Prints a
Markdown table; exits with 1 if a figure misses its target. ``--long`` holds the interpreter's lock for 40 s and
watches the sampler for two minutes instead of 20 s.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO / "workflow_scripts"), str(REPO / "tests")]
os.environ["PYTHONPATH"] = str(REPO / "workflow_scripts")

from distill_energy.energy import Meter, MeterConfig, account, attempts_of, journal  # noqa: E402
from distill_energy.energy.identity import stat_fields  # noqa: E402
from energy import fakes  # noqa: E402
from energy.fakes import Power  # noqa: E402

H = 0.5
ROWS: list[tuple[str, str, str, bool | None]] = []


def row(what: str, target: str, reached: str, good: bool | None) -> None:
    ROWS.append((what, target, reached, good))
    print(f"| {what} | {target} | {reached} | {'' if good is None else 'yes' if good else 'NO'} |", flush=True)


def ideal(power: Power, watts, times, counter: bool):
    return [(t, int(1e3 * power.energy(t)) if counter else None, watts(t)) for t in times]


def integration() -> None:
    beats = [k * H for k in range(7201)]
    worst = 0.0
    for power, watts in (
        (Power("const", 412.3), lambda t: 412.3),
        (Power("linear", 100.0, 0.15), lambda t: 100.0 + 0.15 * t),
    ):
        result = account.gpu_energy(ideal(power, watts, beats, False), H)
        worst = max(worst, abs(result.gross_j / power.energy(3600) - 1))
    row("constant and linear power, one hour of 0.5 s samples", "≤ 1e-9", f"{worst:.1e}", worst <= 1e-9)
    worst, bound = 0.0, True
    for dwell in (5.0, 6.7, 11.0, 60.0):
        power = Power("square", 100.0, 700.0, 2 * dwell)
        for phase in (0.0, 0.11, 0.27, 0.41):
            times = [t + phase for t in beats[:1201]]
            truth = power.energy(times[-1]) - power.energy(times[0])
            watts = lambda t, d=dwell: 100.0 if math.fmod(t, 2 * d) < d else 700.0  # noqa: E731
            result = account.gpu_energy(ideal(power, watts, times, False), H)
            worst = max(worst, abs(result.gross_j / truth - 1))
            bound = bound and abs(result.gross_j - truth) <= result.error_j
    row("steps 100/700 W, dwell ≥ 5 s, power only", "≤ 0.5%", f"{100 * worst:.3f}%", worst <= 0.005)
    row("… and the error lies within the stated bound", "always", "always" if bound else "not always", bound)


def rapl() -> None:
    span, rng, total, t = 262_143_328_850, random.Random(0), 0, 0.0
    readings = [(0.0, 5, None)]
    for _ in range(172_800):
        delta = rng.randrange(50_000_000, 190_000_000)
        total, t = total + delta, t + H
        readings.append((t, (5 + total) % span, None))
    result = account.rapl_energy(readings, H, span, 600.0)
    off = abs(result.gross_j - total * 1e-6) * 1e6
    row(f"RAPL, a day, {total // span} wraps", "≤ 1 µJ", f"{off:.2f} µJ", off <= 1)


def aliasing() -> None:
    """A sensor that averages 25 ms, sampled each 0.5 s, at a load whose period is exactly that."""
    load = Power("square", 100.0, 700.0, 0.5)

    def sensor(t: float) -> float:
        return (load.energy(t) - load.energy(t - 0.025)) / 0.025

    def error(times) -> float:
        readings = [(t, None, sensor(t)) for t in times]
        truth = load.energy(times[-1]) - load.energy(times[0])
        return account.gpu_energy(readings, H).gross_j / truth - 1

    rng = random.Random(1)
    plain = [error([p + k * H for k in range(1, 1201)]) for p in (0.05, 0.15, 0.3, 0.4)]
    moved = [error([p + (k + 0.9 * (rng.random() - 0.5)) * H for k in range(1, 1201)]) for p in (0.05, 0.15, 0.3, 0.4)]
    row(
        "load in step with the beat, power only, no jitter",
        "(shown)",
        f"{100 * min(plain):+.0f}% to {100 * max(plain):+.0f}%",
        None,
    )
    row(
        "… with jitter 0.9",
        "(shown)",
        f"{100 * min(moved):+.1f}% to {100 * max(moved):+.1f}%",
        None,
    )


def replay() -> None:
    data = Path(os.environ.get("DISTILL_ENERGY_TEST_DATA", REPO.parent / "shared" / "data"))
    path = data / "h100_traces" / "kd_32b_to_13b_power.csv"
    if not path.is_file():
        return
    with open(path, newline="") as handle:
        rows = [(float(r["timestamp"]), float(r["gpu_0_power_w"])) for r in csv.DictReader(handle)]
    result = account.gpu_energy([(t, None, p) for t, p in rows], H, limit_w=700)
    timing = account.timing([t for t, _ in rows], rows[0][0], rows[-1][0], H)
    row(
        "a real H100 trace (1,665 s) replayed",
        "782,035 J, 2 gaps",
        f"{result.gross_j:,.0f} J ± {result.error_j:,.0f} J, {timing.gaps} gaps, largest {timing.largest_s:.1f} s, "
        f"coverage {100 * timing.coverage:.2f}%",
        abs(result.gross_j - 782_035) < 1 and timing.gaps == 2,
    )


def fake_gpus(folder: Path, *powers: Power, lines: tuple[str, ...] = ()) -> fakes.FakeGpus:
    library = folder / "lib"
    if not library.exists():
        library.mkdir()
        fakes.build("fake_nvml.c", library / "libnvidia-ml.so.1")
    os.environ |= {"LD_LIBRARY_PATH": str(library), "FAKE_NVML": str(folder / "nvml.txt"), "FAKE_NVML_ONCE": "1"}
    gpus = fakes.FakeGpus(folder / "nvml.txt")
    for power in powers:
        gpus.add(power, *lines)
    return gpus


def gross(attempt) -> float:
    return math.fsum(c.gross_j for c in attempt.components if c.component == "gpu")


def interpreter_lock(folder: Path, seconds: int) -> None:
    gpus = fake_gpus(folder, Power("square", 100.0, 700.0, 6.0), lines=("nocounter",))
    with Meter(folder / "gil", MeterConfig(cpu="off")) as meter:
        ctypes.PyDLL(None).usleep(seconds * 1_000_000)  # PyDLL keeps the interpreter's lock
    quality = meter.attempt.quality
    row(
        f"largest gap while the stage holds the interpreter's lock for {seconds} s",
        "≤ 2 intervals",
        f"{quality.largest_gap_s / H:.2f} intervals, {quality.gaps} gaps",
        quality.largest_gap_s <= 2 * H,
    )
    truth = gpus.truth(0, meter.attempt.start_mono_s, meter.attempt.end_mono_s)
    row(
        "… energy of 100/700 W steps of 3 s meanwhile",
        "(shown)",
        f"{100 * (gross(meter.attempt) / truth - 1):+.2f}%",
        None,
    )


def cpu_s(pid: int) -> float:
    fields = stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sampler_cost(folder: Path, seconds: int) -> None:
    fake_gpus(folder, *[Power("const", 100.0 + i) for i in range(8)])
    with Meter(folder / "cost", MeterConfig(cpu="off")) as meter:
        pid = meter._sampler.pid
        status = Path(f"/proc/{pid}/status").read_text()
        rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024
        time.sleep(2)
        before, began = cpu_s(pid), time.monotonic()
        time.sleep(seconds)
        share = (cpu_s(pid) - before) / (time.monotonic() - began)
        n = 100_000
        began = time.perf_counter()
        for _ in range(n):
            meter.joules()
        joules = (time.perf_counter() - began) / n
        began = time.perf_counter()
        for _ in range(n):
            meter.add_tokens("processed", 1)
        tokens = (time.perf_counter() - began) / n
    size = (meter.folder / "journal.jsonl").stat().st_size / meter.attempt.wall_s * 3600 / 2**20
    row(f"sampler, eight fake GPUs, 0.5 s, over {seconds} s", "≤ 0.2% of a core", f"{100 * share:.2f}%", share <= 0.002)
    row("sampler's memory", "(shown)", f"{rss:.0f} MB", None)
    row("journal, eight GPUs", "(shown)", f"{size:.1f} MB an hour", None)
    row("cost of joules() and add_tokens()", "(shown)", f"{1e6 * joules:.1f} µs, {1e6 * tokens:.1f} µs", None)
    row("start-up, NVML only, outside the window", "(shown)", f"{meter.start_up_s:.2f} s", None)


def codecarbon_start(folder: Path) -> None:
    config = MeterConfig(gpu=False, powercap=str(folder / "none"))
    with Meter(folder / "cc", config) as meter:
        time.sleep(1)
    row("start-up with CodeCarbon, outside the window", "(shown)", f"{meter.start_up_s:.2f} s", None)
    row("… window of a stage that slept 1 s", "(shown)", f"{meter.attempt.wall_s:.2f} s", None)


STAGE = """
import sys, time
from distill_energy.energy import Meter, MeterConfig
with Meter(sys.argv[1], MeterConfig(cpu="off")) as meter:
    print("in", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def kill(folder: Path) -> None:
    gpus = fake_gpus(folder, Power("const", 500.0))
    worst = 0.0
    for k in range(5):
        stage = subprocess.Popen([sys.executable, "-c", STAGE, folder / f"k{k}", "60"], stdout=subprocess.PIPE)
        stage.stdout.readline()
        time.sleep(1.5 + 0.17 * k)
        killed = time.monotonic()
        os.kill(stage.pid, signal.SIGKILL)
        stage.wait()
        time.sleep(0.5)
        (attempt,) = attempts_of(folder / f"k{k}")
        lost = gpus.truth(0, attempt.start_mono_s, killed) - gross(attempt)
        worst = max(worst, abs(lost) / 500.0)
    row("SIGKILL of the stage, five times: lost", "≤ 1 interval (500 ms)", f"≤ {1e3 * worst:.0f} ms", worst <= H)


def stages_against_run(folder: Path) -> None:
    """Stages of one run one after the other, inside a meter over the whole run."""
    fake_gpus(folder, Power("square", 120.0, 680.0, 1.7))
    with Meter(folder / "run", MeterConfig(interval_s=0.05, cpu="off")) as run:
        for k in range(4):
            subprocess.run([sys.executable, "-c", STAGE, folder / f"s{k}", "4"], check=True, stdout=subprocess.DEVNULL)
    stages = [attempts_of(folder / f"s{k}")[0] for k in range(4)]
    records, _ = journal.read(run.folder / journal.NAME)
    counter = account.gpu_energy([(r["t"], *r["v"][0][:2]) for r in records if r["r"] == "tick"], 0.05)
    inside = math.fsum(counter.at(a.end_mono_s) - counter.at(a.start_mono_s) for a in stages)
    total, whole = math.fsum(gross(a) for a in stages), gross(run.attempt)
    off = abs(total / inside - 1)
    row("Σ of four stages against the run's counter over their windows", "≤ 1%", f"{100 * off:.3f}%", off <= 0.01)
    row(
        "… share of the run outside any window (four start-ups, 4 s stages)",
        "(shown)",
        f"{100 * (1 - inside / whole):.1f}%",
        None,
    )


def live(folder: Path) -> None:
    gpus = fake_gpus(folder, *[Power("square", 90.0, 650.0, p) for p in (0.13, 0.5, 0.7, 1.0)], lines=("refresh 0.1",))
    with Meter(folder / "live", MeterConfig(cpu="off")) as meter:
        time.sleep(10)
    parts = [c for c in meter.attempt.components if c.component == "gpu"]
    truths = [gpus.truth(i, meter.attempt.start_mono_s, meter.attempt.end_mono_s) for i in range(4)]
    worst = max(abs(p.gross_j / t - 1) for p, t in zip(parts, truths, strict=True))
    bound = all(abs(p.gross_j - t) <= p.error_j for p, t in zip(parts, truths, strict=True))
    checks = [100 * (p.crosscheck_j / t - 1) for p, t in zip(parts, truths, strict=True)]
    row("square waves of 0.13 to 1 s, 10 s, counter moving each 0.1 s", "(shown)", f"{100 * worst:.2f}%", None)
    row("… error within the stated bound", "always", "always" if bound else "no", bound)
    row("… the same by polled power", "(shown)", f"{min(checks):+.1f}% to {max(checks):+.1f}%", None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", action="store_true")
    options = parser.parse_args()
    print("| figure | target | reached | met |\n| --- | --- | --- | --- |")
    integration()
    rapl()
    aliasing()
    replay()
    with tempfile.TemporaryDirectory(prefix="distill-energy-bench-") as name:
        folder = Path(name)
        os.environ["DISTILL_ENERGY_LOCKS"] = str(folder / "locks")
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        codecarbon_start(folder)
        if fakes.compiler() is None:
            print("\nno C compiler: the live figures need one", file=sys.stderr)
            return 1
        live(folder)
        kill(folder)
        stages_against_run(folder)
        interpreter_lock(folder, 40 if options.long else 5)
        sampler_cost(folder, 120 if options.long else 20)
    return 1 if any(good is False for *_, good in ROWS) else 0


if __name__ == "__main__":
    sys.exit(main())
