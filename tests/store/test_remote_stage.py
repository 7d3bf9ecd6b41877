"""Stages on a store behind a URL: nothing is measured twice, and what a failed try spent stays in the ledger."""

import time
from pathlib import Path

import pytest

from distill_energy.errors import UserError
from distill_energy.ledger.ledger import collect_rows
from distill_energy.plan.spec import Input, StageSpec
from distill_energy.stage import execute
from distill_energy.store.remote import local_root
from distill_energy.store.teacher_store import consumers

ENERGY = {
    "interval_s": 0.1, "jitter": 0.1, "cpu": "auto", "pue": 1.0,
    "grid": {"country": "SWE", "region": None, "g_per_kwh": 40.0, "source": "a table"},
}  # fmt: skip
KEY = ("teacher_logits", "t-d", "1" * 12)


def specs(url: str, folder: str) -> tuple[StageSpec, StageSpec]:
    """A teacher stage and a student that reads it, of the workflow in ``folder``."""
    mirror = local_root(url, f"{folder}/results")
    teacher = StageSpec(*KEY, 1, {}, root=mirror, energy=ENERGY, store=url)
    read = (Input("teacher_logits", *KEY, mirror),)
    student = StageSpec("student_training", "s", "2" * 12, 1, {}, read, {"run": "r", "group": "g"}, 0,
                        f"{folder}/results", ENERGY, url)  # fmt: skip
    return teacher, student


def teach(ctx) -> dict:
    time.sleep(0.3)
    (ctx.out / "shard").write_bytes(b"logits")
    return {}


def learn(ctx) -> dict:
    assert (ctx.inputs["teacher_logits"] / "shard").read_bytes() == b"logits"
    return {}


def fail(ctx) -> dict:
    time.sleep(0.3)
    raise UserError("no")


def never(ctx) -> dict:
    raise AssertionError("measured again")


@pytest.fixture
def url(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    return f"file://{tmp_path}/store"


def test_a_failed_push_is_repeated_without_measuring_again(url):
    teacher, student = specs(url, "one")
    block = Path("store") / KEY[0]

    def teach_and_break_the_store(ctx) -> dict:
        block.write_text("")
        return teach(ctx)

    with pytest.raises(UserError, match=f"{url}/teacher_logits/t-d/1"):
        execute(teacher, teach_and_break_the_store)
    block.unlink()
    record = execute(teacher, never)
    assert len(record.attempts) == 1
    assert (block / "t-d" / KEY[2] / "energy.json").exists()
    trained = execute(student, learn)
    (Path("store") / "consumers").rename("gone")  # as if the workflow had been killed before it registered
    assert execute(student, never).attempts == trained.attempts
    assert len(list(consumers("store"))) == 1


def test_another_workflow_takes_the_artifact_and_its_own_failed_try_stays_wasted(url):
    teacher, student = specs(url, "one")
    with pytest.raises(UserError, match="no"):
        execute(teacher, fail)
    made = execute(specs(url, "other")[0], teach)
    assert execute(teacher, never) == made
    assert not (Path(teacher.folder) / "shard").exists()
    record = execute(student, learn)
    assert [phase.name for phase in record.attempts[0].phases] == ["verify", "teacher_store"]
    rows, problems = collect_rows([Path("one/results"), Path(teacher.root)])
    by = {(row["stage"], row["status"]): row for row in rows}
    assert set(by) == {("teacher_logits", "ok"), ("teacher_logits", "orphan"), ("student_training", "ok")}
    assert by["teacher_logits", "ok"]["total_j"] == made.energy.gross_j
    assert by["teacher_logits", "orphan"]["attempts"] == 1 and by["teacher_logits", "orphan"]["wall_s"] >= 0.3
    assert [problem.kind for problem in problems if problem.kind != "unknown_energy"] == ["orphan"]
    rows, _ = collect_rows([Path("other/results"), Path(local_root(url, "other/results"))])
    assert [row["status"] for row in rows if row["stage"] == "teacher_logits"] == ["ok"]
