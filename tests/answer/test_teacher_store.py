"""Two workflows that share a teacher store count each other's reuse, not each other's joules."""

import pytest

from distill_energy.ledger.ledger import collect_rows, provenance
from distill_energy.store import atomic, teacher_store
from distill_energy.store import sidecar as schema

LOGITS = {"role": "teacher_logits", "stage": "teacher_logits", "name": "t-d", "version": "1" * 12}


def sidecar(stage, name, version, consumes=(), attempt="a", joules=5.0):
    part = {"component": "cpu", "source": "measured", "method": "rapl", "gross_j": joules, "in_total": True}
    started = f"2026-01-01T00:00:0{len(attempt)}+00:00"
    return schema.Sidecar.model_validate(
        {
            "stage": stage, "name": name, "version": version, "recipe": 1, "params": {}, "consumes": list(consumes),
            "labels": {"pipeline": "kd", "student": "s", "dataset": "d", "teacher": "t", "group": "g", "seed": 0},
            "attempts": [{"id": attempt, "host": "h", "start_utc": started, "start_mono_s": 0.0,
                          "outcome": "completed", "components": [part]}],
            "energy": {"components": [part], "gross_j": joules, "wasted_gross_j": 0.0, "source": "measured"},
            "quality": {}, "co2e": {"reason": "no grid"}, "hardware": {"host": "h"}, "software": {"python": "3.11"},
            "created_utc": started,
        }
    )  # fmt: skip


def put(root, record):
    path = root / record.stage / record.name / record.version / "energy.json"
    atomic.write_text(path, schema.dump(record))


@pytest.fixture
def shared(tmp_path):
    """A store with one logit cache; a workflow that trained run a; another that trained runs a and b."""
    store, one = tmp_path / "store", tmp_path / "one"
    put(store, sidecar("teacher_logits", "t-d", "1" * 12))
    own = sidecar("student_training", "d-kd-s-s0", "a" * 12, [LOGITS], "x")
    put(one, own)
    for record in (
        own,
        sidecar("student_training", "d-kd-s-s0", "a" * 12, [LOGITS], "yy"),
        sidecar("student_training", "d-kd-s-s1", "b" * 12, [LOGITS], "zzz"),
    ):
        root = one if record.attempts[0].id == "x" else tmp_path / record.attempts[0].id
        teacher_store.register(store, record, root)
    return store, one


def test_reuse_counts_every_run_that_was_trained(shared):
    store, one = shared
    rows, problems = collect_rows([one, store])
    assert provenance(rows).reuse(("teacher_logits", "t-d", "1" * 12)) == 3
    assert [p for p in problems if p.kind == "rejected"] == []


def test_energy_of_other_workflows_stays_with_them(shared):
    rows, _ = collect_rows([shared[1], shared[0]])
    mine = [r for r in rows if r["status"] == "ok" and r["stage"] == "student_training"]
    assert [r["version"] for r in mine] == ["a" * 12]
    assert sorted(r["status"] for r in rows) == ["elsewhere", "elsewhere", "ok", "ok"]


def test_a_damaged_registration_is_named(shared):
    store, one = shared
    path = next(teacher_store.consumers(store))
    path.write_text(path.read_text()[:100])
    _, problems = collect_rows([one, store])
    assert any(p.kind == "rejected" and str(path) in p.message for p in problems)
