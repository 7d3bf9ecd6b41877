"""What a stage's phases say of an execution: unknown is not 0."""

from types import SimpleNamespace

from distill_energy.ledger.rows import phase_joules
from distill_energy.report.sentences import overhead
from distill_energy.store import sidecar as schema


def record(*phases):
    made = []
    for name, joules in phases:
        known = {"source": "measured"} if joules is not None else {"source": "unavailable", "reason": "unknown"}
        made.append(schema.Phase(name=name, wall_s=1.0, gross_j=joules, **known))
    attempt = schema.Attempt(
        id="a", host="h", start_utc="2026-01-01T00:00:00+00:00", start_mono_s=0.0, outcome="completed", phases=made
    )
    return SimpleNamespace(attempts=[attempt])


def test_phases_by_what_they_are_for():
    new = record(
        ("verify", 1.0), ("start", 4.0), ("load", 2.0), ("evaluation", 3.0), ("save", 0.5), ("checkpoint", 0.5)
    )
    assert phase_joules(new) == {"start": 5.0, "load": 2.0, "evaluate": 3.0, "write": 1.0}


def test_a_record_without_a_start_does_not_say_that_it_took_nothing():
    old = record(("verify", 1.0), ("evaluation", 3.0), ("evaluation", None))
    assert phase_joules(old) == {"start": None, "load": None, "evaluate": None, "write": None}
    row = {"total_j": 100.0, "start_j": None, "load_j": None, "write_j": 1.0}
    assert overhead([row]) is None
    told = {"total_j": 50.0, "start_j": 5.0, "load_j": 4.0, "write_j": 1.0}
    assert overhead([row, told]) == 0.2
