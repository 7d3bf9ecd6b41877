"""The ledger: sums, provenance, and that no bad record enters silently."""

import json
import re
import shutil

import factory
import pytest

from distill_energy.answer.aggregate import answer, read_ledger, write_ledger
from distill_energy.ledger.ledger import collect, collect_rows, mark_current, provenance, records
from distill_energy.store.sidecar import Attempt, Component


@pytest.fixture
def root(demo_root, tmp_path):
    """A private copy of the demo, to damage."""
    shutil.copytree(demo_root, tmp_path / "results")
    return tmp_path / "results"


def kd_training(root):
    return next((root / "student_training").glob("*-kd-6-layer-s0/*"))


def edit(folder, change):
    path = folder / "energy.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_row_a_stage_execution_with_its_energies(demo_root):
    rows, problems = collect_rows([demo_root])
    assert problems == []
    # prerun, data, teacher model, 3 student models, teacher evaluation, 2 teacher artifacts, 18 × (training,
    # evaluation)
    assert len(rows) == 1 + 1 + 1 + 3 + 1 + 2 + 36
    row = next(r for r in rows if r["stage"] == "teacher_logits")
    assert row["total_j"] == pytest.approx(1300.0)
    assert row["idle_j"] == pytest.approx(260.0)
    assert row["total_net_j"] == pytest.approx(1040.0)
    assert row["cpu_j"] == pytest.approx(1300.0)
    assert row["gpu_j"] is None  # a GPU that does not exist is no 0
    assert row["source"] == "estimated"


def test_reuse_counts_come_from_every_training_sidecar_current_or_not(demo_root):
    rows, _ = collect_rows([demo_root])
    mark_current(rows, [])
    source = provenance(rows)
    logits = next((r["stage"], r["name"], r["version"]) for r in rows if r["stage"] == "teacher_logits")
    assert source.reuse(logits) == 6  # three students × two seeds; evaluations do not count
    assert source.reuse(("teacher_logits", "x", "y")) == 0


def test_ledger_round_trip_keeps_types_nulls_and_problems(root, tmp_path):
    (kd_training(root) / "energy.json").write_text("{")
    rows, problems = collect_rows([root])
    write_ledger(tmp_path / "ledger.parquet", rows, problems)
    again, found = read_ledger(tmp_path / "ledger.parquet")
    assert again == rows
    assert found == problems


def test_frame_keeps_integers_beside_nulls(demo_root):
    frame, _ = collect([demo_root])
    assert str(frame["seed"].dtype) == "int64[pyarrow]"
    assert records(frame) == [*records(frame)]
    assert {r["seed"] for r in records(frame)} == {None, 0, 1}


BAD = {
    "truncated": (lambda text: text[: len(text) // 2], "not a whole JSON document"),
    "another schema": (lambda text: text.replace('"schema_version": 1', '"schema_version": 9'), "schema_version 9"),
    "negative joules": (lambda text: re.sub(r'"gross_j": (?=\d)', '"gross_j": -', text), "not negative"),
    "unknown key": (lambda text: text.replace('"recipe"', '"receipt": 1, "recipe"'), "receipt"),
    "not an object": (lambda text: "[]", "a sidecar is a JSON object"),
    "empty": (lambda text: "", "not a whole JSON document"),
    "binary": (lambda text: None, "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_sidecar_is_named_rejected_and_its_run_leaves_the_figures(root, case):
    damage, message = BAD[case]
    folder = kd_training(root)
    path = folder / "energy.json"
    text = damage(path.read_text())
    path.write_bytes(b"\xff\xfe\x00" if text is None else text.encode())
    rows, summary, problems = answer([root])
    rejected = [p for p in problems if p.kind == "rejected"]
    assert len(rejected) == 1
    assert rejected[0].path == str(path)
    assert message in rejected[0].message
    assert not any(r["path"] == str(folder) for r in rows)
    row = next(r for r in summary if r["label"] == "KD 6-layer")
    assert row["seeds"] == 1
    assert row["n_reuse"] == 5
    # the evaluation that consumed it is orphaned and says so
    assert [p for p in problems if p.kind == "consumes_missing"]


def test_a_total_that_is_not_the_sum_of_its_components_is_rejected(root):
    edit(kd_training(root), lambda d: d["energy"].update(gross_j=d["energy"]["gross_j"] * 2))
    _, problems = collect_rows([root])
    assert "not the sum of its components" in problems[0].message


def test_more_wasted_than_spent_is_rejected(root):
    edit(kd_training(root), lambda d: d["energy"].update(wasted_gross_j=1e9))
    assert "exceeds" in collect_rows([root])[1][0].message


def _attempt(**values):
    return lambda d: d["attempts"][0].update(values)


def _component(**values):
    return lambda d: d["energy"]["components"][1].update(values)


CONTRADICTIONS = {
    "attempts": (lambda d: d["attempts"][0]["components"][1].update(gross_j=1.0), "not the sum of its attempts"),
    "idle": (lambda d: d["energy"].update(idle_j=1e9), "energy.idle_j 1000000000.0 exceeds gross_j"),
    "idle of a component": (_component(idle_j=1e9), "cpu: idle_j 1000000000.0 exceeds gross_j"),
    "coverage": (lambda d: d["quality"].update(coverage=1.2), "quality.coverage = 1.2: a share is between 0 and 1"),
    "an attempt's coverage": (lambda d: d["attempts"][0]["quality"].update(coverage=-0.1), "between 0 and 1"),
    "negative time": (_attempt(wall_s=-1.0), "wall_s = -1.0: time is not negative"),
    "ends before it begins": (_attempt(end_mono_s=-5.0), "end_mono_s -5.0 is before start_mono_s 0.0"),
    "ends on an earlier day": (_attempt(end_utc="2026-11-23T10:00:00Z"), "end_utc 2026-11-23T10:00:00Z is before"),
    "no time": (_attempt(end_utc="yesterday"), "not ISO 8601 times"),
    "CO2e": (lambda d: d["co2e"].update(g=5.0), "co2e.g 5.0 is not energy × PUE × grid intensity"),
    "PUE": (lambda d: d["co2e"].update(pue=0.5), "co2e.pue = 0.5: a facility draws no less than its hosts"),
    "source": (lambda d: d["energy"].update(source="measured"), "but a component of it is estimated"),
    "J/token": (
        lambda d: d.update(j_per_token={"value": 3.0, "divides_by": "processed"}),
        "j_per_token 3.0 is not",
    ),
    "tokens": (lambda d: d["tokens"].update(processed=-1), "tokens.processed = -1: a count is not negative"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_sidecar_that_contradicts_itself_is_rejected_by_name(root, case):
    change, words = CONTRADICTIONS[case]
    folder = kd_training(root)
    edit(folder, change)
    rows, problems = collect_rows([root])
    rejected = [p for p in problems if p.kind == "rejected"]
    assert [p.path for p in rejected] == [str(folder / "energy.json")]
    assert rejected[0].message.startswith(f"{folder}/energy.json: ") and words in rejected[0].message
    assert "\n" not in rejected[0].message
    assert not any(r["path"] == str(folder) for r in rows)


def test_a_sidecar_in_another_folder_than_it_says_is_rejected(root):
    folder = kd_training(root)
    shutil.copytree(folder, folder.with_name("copied00000"))
    rows, problems = collect_rows([root])
    assert [p.kind for p in problems] == ["rejected"]
    assert "says it is" in problems[0].message
    assert len(rows) == 45


def test_missing_consumed_artifacts_make_the_energy_unknown_not_smaller(root):
    shutil.rmtree(root / "teacher_logits")
    _, summary, problems = answer([root])
    assert sum(p.kind == "consumes_missing" for p in problems) == 6
    row = next(r for r in summary if r["label"] == "KD 6-layer")
    assert row["e_oneoff_kwh"] is None
    assert row["n_star_status"] == "unknown"
    assert "teacher_logits" in row["e_reason"]
    assert next(r for r in summary if r["label"] == "SFT 6-layer")["e_oneoff_kwh"] is not None


def test_the_same_record_twice_counts_once(root, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(root / "teacher_logits", store / "teacher_logits")
    rows, problems = collect_rows([root, store])
    assert [p.kind for p in problems] == ["duplicate"]
    assert "the same record" in problems[0].message
    assert sum(r["status"] == "ok" for r in rows) == 45
    _, summary, _ = answer([root, store])
    assert summary == answer([root])[1]


def test_an_artifact_made_twice_is_named_with_its_joules(root, tmp_path):
    store = tmp_path / "store"
    key = ("teacher_logits", f"{factory.TEACHER}-{factory.DATASET}", factory.short("teacher_logits"))
    factory.stage(store, key, 999.0, start_utc="2026-11-25T00:00:00Z")
    _, problems = collect_rows([root, store])
    duplicate = next(p for p in problems if p.kind == "duplicate")
    assert "another execution" in duplicate.message
    assert "999 J" in duplicate.message


def test_one_root_named_twice_is_one_root(demo_root):
    assert collect_rows([demo_root, demo_root / ".." / demo_root.name])[1] == []


def test_planned_artifacts_without_a_sidecar_are_named(demo_root):
    rows, _ = collect_rows([demo_root])
    problems = mark_current(rows, [("student_training", "nobody", "000000000000")])
    assert [p.kind for p in problems] == ["missing"]


def test_an_unknown_energy_is_a_problem_with_its_reason(root):
    def forget(data):
        for part in data["energy"]["components"] + data["attempts"][0]["components"]:
            if part["component"] == "cpu":
                part.update(
                    source="unavailable", method=None, gross_j=None, idle_j=None, error_j=None, reason="no meter"
                )
        data["energy"].update(
            gross_j=None, idle_j=None, error_j=None, wasted_gross_j=None, source="unavailable", reason="cpu: no meter"
        )

    edit(kd_training(root), forget)
    rows, summary, problems = answer([root])
    assert "no meter" in next(p for p in problems if p.kind == "unknown_energy").message
    row = next(r for r in summary if r["label"] == "KD 6-layer")
    assert row["e_oneoff_kwh"] is None
    assert row["n_star_status"] == "unknown"
    assert next(r for r in rows if r["total_j"] is None)["total_j"] is None


def test_attempts_without_an_artifact_are_wasted_energy(root, monkeypatch):
    """The journal has its own tests; here what it yields enters the ledger."""
    from distill_energy.ledger import outside

    folder = root / "attempts" / "student_training" / "instructions-kd-24-layer-s0" / "abc"
    (folder / "a1").mkdir(parents=True)

    def attempt(gross, outcome):
        part = Component(component="cpu", source="measured", method="rapl", gross_j=gross)
        return Attempt(
            id="a",
            host="h",
            start_utc="2026-11-24T10:00:00Z",
            start_mono_s=0,
            wall_s=1,
            outcome=outcome,
            components=[part],
        )

    monkeypatch.setattr(outside, "read_attempts", lambda path: [attempt(70.0, "killed"), attempt(30.0, "failed")])
    rows, problems = collect_rows([root], {"student_training/instructions-kd-24-layer-s0/abc": {"pipeline": "kd"}})
    row = next(r for r in rows if r["status"] == "orphan")
    assert row["total_j"] == row["wasted_j"] == 100.0
    assert row["pipeline"] == "kd"
    assert next(p for p in problems if p.kind == "orphan").message.count("100 J") == 1
    monkeypatch.setattr(outside, "read_attempts", lambda path: [attempt(70.0, "running")])
    assert not [r for r in collect_rows([root])[0] if r["status"] == "orphan"]


def test_a_failed_stage_measured_by_the_real_meter_becomes_an_orphan_row(root):
    """The stage raises; its attempt is closed as failed, there is no sidecar, and its energy is not forgotten."""
    import time

    from distill_energy.energy import Meter
    from distill_energy.energy.config import MeterConfig

    name = "student_training/instructions-kd-24-layer-s0/abcdef012345"
    with pytest.raises(RuntimeError), Meter(root / "attempts" / name, MeterConfig(0.1, gpu=False)):
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            sum(range(10000))
        raise RuntimeError("out of memory")
    rows, problems = collect_rows([root], {name: {"pipeline": "kd", "student": "24-layer"}})
    row = next(r for r in rows if r["status"] == "orphan")
    assert row["student"] == "24-layer"
    assert row["wall_s"] > 2
    assert row["total_j"] is None or row["total_j"] == row["wasted_j"] > 0
    assert (row["total_j"] is None) == (row["unknown_reason"] is not None)
    problem = next(p for p in problems if p.kind == "orphan")
    assert "(failed)" in problem.message


def test_a_damaged_journal_is_named_and_one_that_never_began_is_nothing(root):
    folder = root / "attempts" / "student_training" / "instructions-kd-24-layer-s0" / "abcdef012345" / "one"
    folder.mkdir(parents=True)
    (folder / "journal.jsonl").write_text("")
    rows, problems = collect_rows([root])
    assert len(rows) == 45  # an attempt whose window never began spent nothing that is counted
    assert problems == []
    (folder / "journal.jsonl").write_text('{"r":"open","broken":true}\n{"r":"go"}\n')
    rows, problems = collect_rows([root])
    assert [p.kind for p in problems] == ["orphan"] and str(folder / "journal.jsonl") in problems[0].message
    (orphan,) = [row for row in rows if row["status"] == "orphan"]
    assert orphan["total_j"] is None and "damaged" in orphan["unknown_reason"]
