"""Nothing silent: what is consumed is what was made, and only what made it is useful."""

import json
import os
import time
from pathlib import Path

import pytest

from distill_energy import stage
from distill_energy.errors import UserError
from distill_energy.ledger.ledger import collect_rows
from distill_energy.plan.spec import Input, StageSpec
from distill_energy.stage import execute

ENERGY = {
    "interval_s": 0.1, "jitter": 0.1, "cpu": "auto", "pue": 1.0,
    "grid": {"country": None, "region": None, "g_per_kwh": 40.0, "source": "a table"},
}  # fmt: skip
DATA = ("preprocess", "data-d", "1" * 12)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def data() -> StageSpec:
    return StageSpec(*DATA, 1, {}, energy=ENERGY)


def student() -> StageSpec:
    labels = {"run": "r", "group": "g", "pipeline": "sft", "student": "s", "dataset": "d", "teacher": "t"}
    return StageSpec(
        "student_training", "s", "2" * 12, 1, {}, (Input("data", *DATA, "results"),), labels, 0, energy=ENERGY
    )


def make(ctx):
    sum(i * i for i in range(2_000_000))
    time.sleep(0.2)
    (ctx.out / "weights").write_bytes(b"weights" * 100)
    return {"loss": 1.0}


def never(ctx):
    raise AssertionError("the work was done again")


def flip(path: Path) -> None:
    """One bit, the size and the time as they were."""
    content, status = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def test_a_flipped_bit_in_an_input_stops_the_stage_and_is_named():
    execute(data(), make)
    flip(Path(data().folder) / "weights")
    with pytest.raises(UserError, match=r"data-d/1+/weights differs from the hash in its sidecar; remove"):
        execute(student(), never)


def test_another_artifacts_file_of_the_same_size_is_no_input():
    execute(data(), make)
    (Path(data().folder) / "weights").write_bytes(b"WEIGHTS" * 100)
    with pytest.raises(UserError, match="differs from the hash"):
        execute(student(), never)


def test_a_file_is_hashed_once(monkeypatch):
    from distill_energy.store import atomic, digests

    execute(data(), make)
    path = Path(data().folder) / "weights"
    assert digests.sha256(path) == atomic.sha256(path)
    monkeypatch.setattr(atomic, "sha256", never)
    digests.sha256(path)
    flip(path)
    with pytest.raises(AssertionError):
        digests.sha256(path)


def test_a_kill_between_the_meters_end_and_the_record_costs_no_work(monkeypatch):
    """Minutes where 100 GB are hashed: 9 of 18 kills there did the work again."""

    class Killed(BaseException):
        pass

    def killed(*args):
        raise Killed

    whole = stage._sidecar
    monkeypatch.setattr(stage, "_sidecar", killed)
    with pytest.raises(Killed):
        execute(data(), make)
    monkeypatch.setattr(stage, "_sidecar", whole)
    record = execute(data(), never)
    assert [a.outcome for a in record.attempts] == ["completed"]
    assert record.energy.wasted_gross_j == 0.0 and record.results == {"loss": 1.0}
    assert not (Path(data().attempts) / stage.DONE_NAME).exists()


def test_files_that_changed_since_the_work_ended_are_made_again(monkeypatch):
    whole = stage._sidecar
    monkeypatch.setattr(stage, "_sidecar", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        execute(data(), make)
    monkeypatch.setattr(stage, "_sidecar", whole)
    (Path(data().folder) / "weights").write_bytes(b"other")
    record = execute(data(), make)
    assert len(record.attempts) == 2


def test_an_artifact_that_was_damaged_and_made_again_is_paid_once_and_wasted_once():
    first = execute(data(), make)
    flip(Path(data().folder) / "weights")
    (Path(data().folder) / "energy.json").unlink()
    again = execute(data(), make)
    spent = [a.components for a in again.attempts]
    assert len(spent) == 2
    assert again.energy.wasted_gross_j == pytest.approx(first.energy.gross_j)
    (row,) = collect_rows([Path("results")])[0]
    assert row["remade_j"] == pytest.approx(first.energy.gross_j)
    assert row["total_j"] == pytest.approx(again.energy.gross_j)


def test_deleted_weights_are_named_by_the_aggregate_and_their_joules_stay():
    execute(data(), make)
    (Path(data().folder) / "weights").unlink()
    (row,), problems = collect_rows([Path("results")])
    assert [p.kind for p in problems] == ["damaged"] and "weights: missing" in problems[0].message
    assert row["total_j"] > 0 and "damaged" in row["flags"]


def test_a_checkpoint_of_other_content_is_passed_over(tmp_path):
    import torch

    from distill_energy.train import checkpoint

    folder, said = tmp_path / "checkpoints", []
    for step in (1, 2):
        checkpoint.save(folder, step, {"identity": {"v": 1}, "weights": torch.full((64,), float(step))})
    path = folder / "step-000000002" / "state-0.pt"
    content = bytearray(path.read_bytes())
    content[-300] ^= 4
    path.write_bytes(content)
    state = checkpoint.load_latest(folder, said.append, {"v": 1})
    assert float(state["weights"][0]) == 1.0
    assert "not what was written" in said[0]


@pytest.mark.parametrize("damage", ["energy x10", "text", "deep", "stage"])
def test_a_consumer_that_is_no_record_is_named_and_the_rest_answers(damage):
    execute(data(), make)
    record = execute(student(), make)
    folder = Path("store/consumers/teacher_logits/t/v")
    folder.mkdir(parents=True)
    content = json.loads(record.model_dump_json())
    if damage == "energy x10":
        content["energy"]["gross_j"] *= 10
    elif damage == "stage":
        content["stage"] = "prerun"
    text = {"text": b"\xff\xfe", "deep": b"[" * 5000}.get(damage, json.dumps(content).encode())
    (folder / "c.json").write_bytes(text)
    rows, problems = collect_rows([Path("results"), Path("store")])
    assert sorted(r["stage"] for r in rows) == ["preprocess", "student_training"]
    assert [p.kind for p in problems] == ["rejected"] and "c.json" in problems[0].message


def test_a_damaged_copy_of_the_sidecar_stops_no_retry(tmp_path):
    """The copy beside the attempts is emptied and the artifact gone: made again, both attempts counted."""
    record = execute(data(), make)
    (tmp_path / data().folder / "energy.json").unlink()
    (tmp_path / data().attempts / "energy.json").write_text("")
    again = execute(data(), make)
    assert len(again.attempts) == 2 and again.energy.wasted_gross_j == pytest.approx(record.energy.gross_j)
