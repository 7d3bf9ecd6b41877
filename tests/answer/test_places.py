"""Every joule in exactly one place, and nothing credited that is not charged."""

import math
from collections import defaultdict

import factory
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_energy.answer.aggregate import answer, judge, main, read_summary
from distill_energy.answer.summary import study, summary_of
from distill_energy.ledger.graph import Provenance
from distill_energy.ledger.ledger import provenance
from distill_energy.ledger.places import PLACES, allocate, by_phase, phase_shares, totals
from distill_energy.ledger.rows import COLUMNS


def row(key, total, consumes=(), status="ok", current=True, wasted=0.0, **labels):
    made = dict.fromkeys(name for name, _ in COLUMNS)
    made |= dict(zip(("stage", "name", "version"), key, strict=True))
    made |= {"status": status, "current": current, "total_j": total, "wasted_j": wasted, "flags": []}
    made |= {"consumes": ["/".join(c) for c in consumes], "run": key[2], **labels}
    return made


def with_phases(rows, draw):
    """Phases of any size, unknown ones and more than the whole among them."""
    for item in rows:
        for name in ("start_j", "load_j", "evaluate_j", "write_j"):
            item[name] = draw(st.none() | st.floats(0, 1e6, allow_nan=False))
    return rows


joules = st.floats(0, 1e6, allow_nan=False)


@st.composite
def ledgers(draw):
    """Ledgers with sweeps, several artifacts, abandoned runs, orphans, duplicates and preruns, and the runs kept."""
    rows, trainings = [], []
    preruns = [("prerun", "host", f"p{i}") for i in range(draw(st.integers(0, 3)))]
    for key in preruns:
        rows.append(row(key, draw(joules), current=draw(st.booleans())))
    for number in range(draw(st.integers(0, 2))):
        rows.append(row(("prerun", "worker", f"w{number}"), draw(joules)))
    artifacts = [("teacher_logits", "t", f"a{i}") for i in range(draw(st.integers(0, 3)))]
    for key in artifacts:
        total = draw(joules)
        rows.append(row(key, total, current=draw(st.booleans()), wasted=total * draw(st.floats(0, 1))))
    rows.append(row(("evaluation", "t", "ref"), draw(joules), role="teacher", teacher="t"))
    for number in range(draw(st.integers(0, 8))):
        key = ("student_training", "s", f"r{number}")
        used = draw(st.lists(st.sampled_from(artifacts), max_size=2, unique=True)) if artifacts else []
        used += draw(st.lists(st.sampled_from(preruns), max_size=1)) if preruns else []
        total, current = draw(joules), draw(st.booleans())
        labels = {"teacher": "t", "dataset": "d", "pipeline": "kd", "student": "s"}
        rows.append(row(key, total, used, current=current, wasted=total * draw(st.floats(0, 1)), **labels))
        evaluated = ("evaluation", "s", f"e{number}")
        rows.append(row(evaluated, draw(joules), [key], current=current, role="student", **labels))
        if current:
            trainings.append(key)
    for number in range(draw(st.integers(0, 3))):
        key = (draw(st.sampled_from(["student_training", "teacher_logits"])), "o", f"o{number}")
        rows.append(row(key, draw(joules), status="orphan", current=False))
    for number in range(draw(st.integers(0, 3))):
        copy = row(("teacher_logits", "t", f"a{number}"), draw(joules), status="duplicate", current=False)
        copy["flags"] = ["duplicate", *(["made_again"] if draw(st.booleans()) else [])]
        rows.append(copy)
    rows.append(row(("student_training", "x", "far"), draw(joules), status="elsewhere", current=False))
    kept = draw(st.sets(st.sampled_from(trainings))) if trainings else set()
    return with_phases(rows, draw), kept


@settings(max_examples=300, deadline=None)
@given(ledgers())
def test_the_places_add_up_to_what_was_spent(given_ledger):
    rows, kept = given_ledger
    places = allocate(rows, kept, provenance(rows))
    spent = math.fsum(
        r["total_j"] for r in rows if r["status"] not in ("duplicate", "elsewhere") or "made_again" in r["flags"]
    )
    assert math.fsum(p["joules"] for p in places) == pytest.approx(spent, rel=1e-9, abs=1e-9)
    assert {p["place"] for p in places} <= set(PLACES)
    assert sum(by_phase(places).values()) == pytest.approx(spent, rel=1e-9, abs=1e-9)
    by_execution = defaultdict(list)
    for place in places:
        by_execution[place["stage"], place["name"], place["version"]].append(place["joules"])
    assert all(value >= 0 for values in by_execution.values() for value in values)
    assert sum(v for v in totals(places).values()) == pytest.approx(spent, rel=1e-9, abs=1e-9)


def test_an_unknown_energy_is_in_its_place_and_makes_it_unknown():
    rows = [row(("student_training", "s", "r"), None)]
    places = allocate(rows, set(), Provenance({}, {}))
    assert [(p["place"], p["joules"]) for p in places] == [("selection", None)]
    assert totals(places)["selection"] is None and totals(places)["own"] == 0


def group(summary, label):
    return next(r for r in summary if r["label"] == label)


def test_settings_that_were_not_kept_make_no_kept_run_cheaper(tmp_path):
    """Nine more settings: N counts their runs, and they are charged where it is credited."""
    plain, swept = tmp_path / "plain", tmp_path / "swept"
    factory.demo(plain, students=("6-layer",), pipelines=("sft", "kd"), sweep={"kd": [{"alpha": 0.0}]})
    grid = {"kd": [{"alpha": i / 10} for i in range(10)]}
    factory.demo(swept, students=("6-layer",), pipelines=("sft", "kd"), sweep=grid)
    (_, alone, _), (_, many, _) = answer([plain]), answer([swept])
    one = group(alone, "KD 6-layer")
    kept = next(r for r in many if r["pipeline"] == "kd" and r["is_kept"])
    assert [r["is_kept"] for r in many].count(True) == 2
    assert (one["n_reuse"], kept["n_reuse"]) == (2, 20)
    assert one["n_kept"] == kept["n_kept"] == 1 and kept["n_kept_runs"] == 2
    shared = [(r["e_amortised_kwh"] - r["e_marginal_kwh"]) for r in (one, kept)]
    assert shared[1] == pytest.approx(shared[0])
    assert kept["e_campaign_kwh"] > 4 * one["e_campaign_kwh"]
    assert kept["excess_so_far"] > one["excess_so_far"] > 0
    assert kept["p_pays"] <= one["p_pays"] < 0.05


def test_runs_that_no_configuration_lists_make_none_cheaper(demo_root):
    rows, summary, _ = answer([demo_root])
    keep = [(r["stage"], r["name"], r["version"]) for r in rows if r["student"] in (None, "6-layer")]
    found, _ = judge([demo_root], current=keep)
    fewer = summary_of(found)
    before, after = (group(s, "KD 6-layer") for s in (summary, fewer))
    assert after["n_reuse"] == before["n_reuse"] == 6
    assert after["e_amortised_kwh"] > before["e_amortised_kwh"]  # its artifact serves 2 kept runs and no longer 6
    assert (after["e_teacher_kwh"] / 2) == pytest.approx(650 / 3.6e6)
    spent = totals(found.places)
    assert spent["abandoned"] > 0 and spent["selection"] == 0


def test_amortised_energies_and_the_other_places_add_up(demo_root):
    rows, _, _ = answer([demo_root])
    found = study(rows)
    spent = math.fsum(r["total_j"] for r in rows)
    kept = [run for g in found.groups.values() if g.kept for run in g.runs]
    amortised = math.fsum(run.total("amortised") for run in kept)
    reference = math.fsum(r["total_j"] for r in rows if r["role"] == "teacher")
    assert amortised + reference == pytest.approx(spent, rel=1e-9)
    assert math.fsum(v for v in found.spent.values()) == pytest.approx(spent, rel=1e-9)


def test_ten_preruns_are_shared_and_not_counted_ten_times(demo_root, tmp_path):
    import shutil

    root = tmp_path / "results"
    shutil.copytree(demo_root, root)
    for number in range(9):
        factory.stage(root, ("prerun", "host", factory.short("prerun", number)), 150.0)
    (_, before, _), (_, after, _) = answer([demo_root]), answer([root])
    grown = group(after, "SFT 6-layer")["e_amortised_kwh"] - group(before, "SFT 6-layer")["e_amortised_kwh"]
    assert grown * 3.6e6 == pytest.approx(9 * 150 / 18)


def test_the_starts_of_warm_processes_are_shared_by_all_runs_whatever_the_configuration_lists(demo_root, tmp_path):
    import shutil

    root = tmp_path / "results"
    shutil.copytree(demo_root, root)
    rows, _, _ = answer([root])
    current = [(r["stage"], r["name"], r["version"]) for r in rows]
    for number in range(2):
        factory.stage(root, ("prerun", "worker", factory.short("worker", number)), 90.0)
    before, after = (summary_of(judge([folder], current=current)[0]) for folder in (demo_root, root))
    grown = {r["label"]: r["e_amortised_kwh"] for r in after}
    assert [(grown[r["label"]] - r["e_amortised_kwh"]) * 3.6e6 for r in before] == pytest.approx([2 * 90 / 18] * 9)


def test_executions_of_different_classes_are_not_compared(demo_root, tmp_path):
    """A cache made on one machine and students trained on another: N* is null with the reason, Q stays."""
    import json
    import shutil

    root = tmp_path / "results"
    shutil.copytree(demo_root, root)
    (path,) = (root / "teacher_logits").glob("*/*/energy.json")
    record = json.loads(path.read_text())
    record["hardware"]["cpu"] = "another CPU"
    path.write_text(json.dumps(record))
    _, summary, _ = answer([root])
    kd, synthetic = group(summary, "KD 6-layer"), group(summary, "Synthetic 6-layer")
    assert kd["n_star"] is None and kd["n_star_status"] == "unknown"
    assert "different classes" in kd["n_star_reason"] and "another CPU" in kd["n_star_reason"]
    assert kd["balance_kwh"] is None and kd["campaign_excess"] is None
    assert kd["delta_q"] is not None and synthetic["n_star"] is not None


def test_the_command_line_gives_the_workflows_answer(demo_root, tmp_path, capsys):
    """Column by column, though it is not told the configuration."""
    import csv
    import shutil

    from distill_energy.__main__ import main as command

    root = tmp_path / "results"
    shutil.copytree(demo_root, root)
    config = {
        "accounting": {"inference_reference": "baseline", "bootstrap": 300, "confidence": 0.9, "estimate_error": 0.1},
        "evaluation": {"benchmarks": {"gold_accuracy": {}, "choice": {}, "cost": {"kind": "inference"}}},
    }
    rows, _, _ = answer([root])
    current = [[r["stage"], r["name"], r["version"]] for r in rows if r["student"] != "18-layer"]
    out = {"ledger": root / "ledger.parquet", "summary": root / "summary.parquet", "csv": root / "summary.csv"}
    main(root, out, current, config, log=lambda line: None)
    assert command(["summary", str(root), "--csv"]) == 0
    printed = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    written = read_summary(out["summary"])
    assert len(printed) == len(written)
    for ours, theirs in zip(printed, written, strict=True):
        for name, value in theirs.items():
            shown = ours[name]
            if isinstance(value, float):
                assert float(shown) == value, name
            else:
                joined = "; ".join(map(str, value)) if isinstance(value, list) else value
                assert shown == ("" if value is None else str(joined)), name


def test_phases_are_those_of_the_attempts_that_made_the_artifact():
    item = row(("student_training", "s", "r"), 100.0, start_j=10.0, load_j=20.0, evaluate_j=None, write_j=5.0)
    assert phase_shares(item, 100.0) == pytest.approx(
        {"start": 0.1, "load": 0.2, "evaluate": 0.0, "write": 0.05, "compute": 0.65}
    )
    places = allocate([item | {"wasted_j": 50.0}], {("student_training", "s", "r")}, Provenance({}, {}))
    assert by_phase(places) == pytest.approx(
        {"start": 10.0, "load": 20.0, "compute": 15.0, "evaluate": 0.0, "write": 5.0, None: 50.0}
    )
    assert phase_shares(item, 17.5)["compute"] == 0.0  # never more than all of it


def test_the_least_joules_have_shares():
    shares = phase_shares({"load_j": 5e-324}, 5e-324)
    assert shares["load"] == 1.0
    assert math.fsum(shares.values()) == 1.0


def test_contamination_is_shared_by_the_runs_that_were_evaluated_on_it():
    """In equal parts, whatever the number of students; a run that was not evaluated on it bears none."""
    made, labels = ("contamination", "quick-d", "c0"), {"teacher": "t", "dataset": "d", "student": "s"}
    rows = [row(("evaluation", "quick-t", "ref"), 40.0, role="teacher", teacher="t")]
    rows.append(row(made, 12.0, [("evaluation", "quick-t", "ref")]))
    runs = [("student_training", f"s{i}", f"r{i}") for i in range(3)]
    for number, run in enumerate(runs):
        rows.append(row(run, 100.0, **labels))
        read = [run, *([made] if number else [])]
        rows.append(row(("evaluation", f"quick-s{number}", f"e{number}"), 5.0, read, role="student", **labels))
    places = allocate(rows, set(runs), provenance(rows))
    found = [(p["place"], p["run"], p["joules"]) for p in places if p["stage"] == "contamination"]
    assert found == [("shared", "/".join(run), 6.0) for run in runs[1:]]
    assert math.fsum(totals(places).values()) == 40 + 12 + 3 * 105
