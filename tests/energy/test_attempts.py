"""Journals to attempts, attempts to a stage's energy."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_energy.energy import fold_attempts
from distill_energy.energy.attempts import build_attempt, made_it
from distill_energy.store import sidecar as schema

WHO = {
    "id": "x",
    "host": "elsewhere",
    "boot_id": "b",
    "pid": 1,
    "pid_start": 1,
    "slurm_job_id": "7",
    "slurm_restart": 2,
}


def journal(watts=300.0, seconds=10.0, h=0.5, step=0.0, end="completed", start=100.0, **opened):
    """Records as the sampler writes them, for one GPU with a counter and a power reading."""
    device = {"component": "gpu", "device": "GPU-1", "kind": "gpu", "unit": 1e-3, "limit_w": 700, "counter": True}
    records = [
        {"r": "open", "attempt": WHO, "interval_s": h, "devices": [device], "absent": [], "flags": [], "notes": []}
        | opened,
        {"r": "go", "t": start, "u": 1e9},
    ]
    for k in range(round(seconds / h) + 1):
        t = start + k * h
        wall = 1e9 + k * h + (step if k > 5 else 0)
        records.append({"r": "tick", "t": t, "u": wall, "v": [[int(1e3 * watts * (t - start)), int(1e3 * watts)]]})
    if end:
        records.append({"r": "end", "t": start + seconds, "u": 1e9 + seconds + step, "outcome": end, "reason": None})
    return records


@pytest.mark.parametrize("step", [0.0, 3600.0, -3600.0])
def test_wall_clock_bends_nothing(step):
    attempt = build_attempt(journal(step=step))
    assert attempt.components[0].gross_j == pytest.approx(3000.0)
    assert attempt.wall_s == 10.0
    assert attempt.end_utc == "2001-09-09T01:46:50.000000+00:00"


def test_identity_is_kept():
    attempt = build_attempt(journal())
    assert (attempt.host, attempt.boot_id, attempt.slurm_job_id, attempt.slurm_restart) == ("elsewhere", "b", "7", 2)


def test_open_journal_of_another_host_by_its_silence():
    assert build_attempt(journal(end=None), silent_s=5.0).outcome == "running"
    closed = build_attempt(journal(end=None), silent_s=500.0)
    assert closed.outcome == "killed" and closed.components[0].gross_j == pytest.approx(3000.0)


def test_records_in_any_order_of_ticks():
    records = journal()
    shuffled = records[:2] + list(reversed(records[2:]))
    assert build_attempt(shuffled).components[0].gross_j == pytest.approx(3000.0)


def test_phase_between_ticks_is_interpolated():
    records = journal()
    records += [
        {"r": "phase+", "t": 102.25, "id": 1, "name": "judge"},
        {"r": "phase-", "t": 104.75, "id": 1, "name": "judge"},
        {"r": "phase+", "t": 107.0, "id": 2, "name": "open at the kill"},
    ]
    judge, last = build_attempt(records).phases
    assert judge.gross_j == pytest.approx(300 * 2.5) and judge.wall_s == pytest.approx(2.5)
    assert last.gross_j == pytest.approx(300 * 3.0)


def test_restarted_sampler_is_one_window():
    records = journal()
    lost = [r for r in records if not (r["r"] == "tick" and 103 < r["t"] < 108)]
    lost.insert(4, {"r": "resume", "t": 108.0, "u": 0, "flags": [], "notes": []})
    lost.insert(5, {"r": "go", "t": 108.0, "u": 1e9 + 8})
    attempt = build_attempt(lost)
    assert attempt.components[0].gross_j == pytest.approx(3000.0)
    assert attempt.quality.largest_gap_s == pytest.approx(5.0) and attempt.quality.gaps == 1
    assert {"sampler_restarted", "gap"} <= set(attempt.quality.flags)


# -- folding

OUTCOMES = ["completed", "failed", "killed", "preempted"]
maybe_joules = st.one_of(st.none(), st.floats(0, 1e6))


@st.composite
def an_attempt(draw):
    gross = draw(maybe_joules)
    parts = [
        schema.Component(
            component="gpu",
            device="GPU-1",
            source="measured" if gross is not None else "unavailable",
            method="nvml_counter" if gross is not None else None,
            gross_j=gross,
            idle_j=draw(maybe_joules),
            error_j=draw(maybe_joules) if gross is not None else None,
            reason=None if gross is not None else "lost",
        ),
        schema.Component(component="dram", source="estimated", method="model", gross_j=5.0, in_total=False),
    ]
    wall = draw(st.floats(0.1, 1e4))
    return schema.Attempt(
        id=str(draw(st.integers(0, 10**9))),
        host="h",
        start_utc="2026-01-01T00:00:00+00:00",
        start_mono_s=0.0,
        end_mono_s=wall,
        wall_s=wall,
        outcome=draw(st.sampled_from(OUTCOMES)),
        components=parts,
        quality=schema.Quality(coverage=draw(st.floats(0, 1)), largest_gap_s=draw(st.floats(0, 10)), gaps=1),
        tokens=schema.Tokens(processed=draw(st.one_of(st.none(), st.integers(0, 10**9)))),
    )


@given(st.lists(an_attempt(), min_size=1, max_size=6))
def test_fold_adds_and_never_invents(attempts):
    energy, quality, tokens = fold_attempts(attempts)
    gross = [a.components[0].gross_j for a in attempts]
    made = {id(a) for a in made_it(attempts)}
    assert len(made) == any(a.outcome == "completed" for a in attempts)  # one host: the last that completed, or none
    lost = [a.components[0].gross_j for a in attempts if id(a) not in made]
    if None in gross:
        assert energy.gross_j is None and "lost" in energy.reason and energy.source == "unavailable"
    else:
        assert energy.gross_j == pytest.approx(math.fsum(gross))
        assert energy.wasted_gross_j == pytest.approx(math.fsum(lost))
        assert energy.wasted_gross_j <= energy.gross_j * (1 + 1e-12) + 1e-9
    assert energy.wasted_gross_j is None if None in lost else energy.wasted_gross_j is not None
    counts = [a.tokens.processed for a in attempts if a.tokens.processed is not None]
    assert tokens.processed == (sum(counts) if counts else None)
    assert quality.gaps == len(attempts)
    assert min(a.quality.coverage for a in attempts) - 1e-9 <= quality.coverage
    assert quality.coverage <= max(a.quality.coverage for a in attempts) + 1e-9
    # CodeCarbon's flat RAM model is shown, never counted
    dram = next(c for c in energy.components if c.component == "dram")
    assert dram.gross_j == pytest.approx(5.0 * len(attempts)) and not dram.in_total


@given(st.lists(an_attempt(), min_size=2, max_size=5), st.randoms())
def test_fold_does_not_depend_on_order(attempts, rng):
    attempts = [attempt.model_copy(update={"id": str(number)}) for number, attempt in enumerate(attempts)]
    mixed = list(attempts)
    rng.shuffle(mixed)
    one, other = fold_attempts(attempts)[0], fold_attempts(mixed)[0]
    assert one.gross_j == pytest.approx(other.gross_j) if one.gross_j is not None else other.gross_j is None
    assert one.wasted_gross_j == pytest.approx(other.wasted_gross_j) if one.wasted_gross_j is not None else True


def test_fold_leaves_running_attempts_out():
    done, running = build_attempt(journal()), build_attempt(journal(end=None), silent_s=1.0)
    assert running.outcome == "running"
    energy, _, _ = fold_attempts([done, running])
    assert energy.gross_j == pytest.approx(3000.0)


def test_fold_of_nothing_is_unknown_not_zero():
    energy, quality, tokens = fold_attempts([])
    assert energy.gross_j is None and energy.reason
    assert quality.coverage is None and tokens.processed is None


def test_idle_of_a_divided_package_is_divided():
    cpu = {"component": "cpu", "device": "package-0", "kind": "rapl", "unit": 1e-6, "limit_w": 900.0, "range": 10**12}
    records = journal(devices=[cpu], idle={"host": "elsewhere", "watts": {"package-0": 40.0}})
    for record in records:
        if record["r"] == "tick":
            record["v"] = [[int(record["v"][0][0] * 1e3), None]]
            if record["t"] > 105:
                record["share"] = 0.25
    (part,) = build_attempt(records).components
    assert part.gross_j == pytest.approx(1500 + 0.25 * 1500)
    assert part.idle_j == pytest.approx(40 * (5 + 0.25 * 5))


def test_two_hosts_with_and_without_gpu():
    """An attempt on a host without a GPU does not make the other's GPU unknown."""
    with_gpu = build_attempt(journal())
    absent = [{"component": "gpu", "reason": "no NVIDIA GPU", "in_total": False}]
    cpu = {"component": "cpu", "device": "package-0", "kind": "rapl", "unit": 1e-6, "limit_w": 300.0, "range": 10**12}
    records = journal(devices=[cpu], absent=absent)
    for record in records:
        if record["r"] == "tick":
            record["v"] = [[int(record["v"][0][0] * 1e3), None]]
    energy, _, _ = fold_attempts([with_gpu, build_attempt(records)])
    assert energy.gross_j == pytest.approx(6000.0)


def tried(start, end, host="h", outcome="completed", name="a"):
    day = "2026-01-01T00:00:"
    return schema.Attempt(
        id=f"{name}{start}",
        host=host,
        start_utc=f"{day}{start:02}+00:00",
        end_utc=f"{day}{end:02}+00:00",
        start_mono_s=0.0,
        wall_s=float(end - start),
        outcome=outcome,
        components=[schema.Component(component="cpu", source="measured", method="rapl", gross_j=float(end - start))],
    )


def test_only_the_attempt_that_made_the_artifact_is_useful():
    """A copy that was damaged, or whose record a kill prevented, was made for nothing."""
    energy, _, _ = fold_attempts([tried(0, 14), tried(20, 33)])
    assert (energy.gross_j, energy.wasted_gross_j) == (27.0, 14.0)
    energy, _, _ = fold_attempts([tried(0, 5, outcome="killed"), tried(6, 9)])
    assert energy.wasted_gross_j == 5.0


def test_the_nodes_of_one_training_made_it_together():
    energy, _, _ = fold_attempts([tried(0, 9, host="n1"), tried(20, 29, host="n1"), tried(21, 30, host="n2")])
    assert energy.wasted_gross_j == 9.0
