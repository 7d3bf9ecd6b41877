"""Logs of the reference harness as people leave them: renamed, copied, killed, in other units, of other days."""

import json
import shutil

import pytest
from test_importer import T0, write_stage

from distill_energy.__main__ import main
from distill_energy.answer.aggregate import answer, judge
from distill_energy.errors import UserError
from distill_energy.published.importer import import_runs
from distill_energy.store.sidecar import read


def configured(run, stage_id, **values):
    """The ``config_*.json`` that the harness writes beside a stage. ``values``: dotted keys."""
    config: dict = {"model": {"teacher": "org/Big-32B-SFT", "student": "org/Small-1B"}, "experiment": {"seed": 42}}
    config |= {"data": {"dataset_choice": "tulu"}, "pipeline": "kd"}
    for dotted, value in values.items():
        inner = config
        *path, last = dotted.split("__")
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = value
    folder = run / "stages" / stage_id
    text = json.dumps({"stage_name": stage_id, "stage_id": stage_id, "config": config})
    (folder / f"config_{stage_id}__{stage_id}.json").write_text(text)
    return run


def cache(root, name, temperature, watts=1000.0):
    run = write_stage(root, name, name, watts)
    return configured(run, name, distillation__temperature=temperature, data__dataset_teacher_logprobs=f"/x/{name}")


def trained(root, name, temperature, reads, watts=200.0, **more):
    run = write_stage(root, name, name, watts, **more)
    return configured(run, name, distillation__temperature=temperature, data__dataset_teacher_logprobs=f"/y/{reads}")


def one(found):
    return read(found.folders[0] / "energy.json")


# (a) what is linked to what


def test_of_two_caches_a_training_reads_the_one_that_its_configuration_names(tmp_path):
    runs = [cache(tmp_path, "logit_caching", 1.0), cache(tmp_path, "logit_caching_temp2", 2.0)]
    runs += [
        trained(tmp_path, "kd_plain", 1.0, "logit_caching"),
        trained(tmp_path, "kd_hot", 2.0, "logit_caching_temp2"),
    ]
    found = import_runs(runs, tmp_path / "out")
    records = [read(folder / "energy.json") for folder in found.folders]
    made = {r.params["stage_id"]: r.version for r in records}
    read_by = {r.params["stage_id"]: [c.version for c in r.consumes] for r in records if r.stage == "student_training"}
    assert read_by == {"kd_plain": [made["logit_caching"]], "kd_hot": [made["logit_caching_temp2"]]}
    assert {r.labels["student"] for r in records if r.stage == "student_training"} == {"Small-1B"}
    assert {r.seed or r.labels["seed"] for r in records if r.stage == "student_training"} == {42}


def test_caches_that_nothing_tells_apart_are_named_and_not_both_consumed(tmp_path):
    runs = [cache(tmp_path, "logit_caching", 1.0), cache(tmp_path, "logit_caching_temp2", 2.0)]
    run = write_stage(tmp_path, "kd_32b_to_1b", "student_train", 100.0)
    with pytest.raises(UserError, match=r"could each be what it read"):
        import_runs([*runs, run], tmp_path / "out", dataset="tulu")
    assert not (tmp_path / "out").exists()  # nothing was written before it was seen


def test_a_training_whose_cache_was_not_logged_comes_in_unknown_where_asked(tmp_path):
    runs = [cache(tmp_path, "logit_caching_temp2", 2.0), trained(tmp_path, "kd_plain", 1.0, "logit_caching")]
    with pytest.raises(UserError, match=r"no teacher_logits .* at temperature 1 .* --missing-teacher"):
        import_runs(runs, tmp_path / "out")
    import_runs(runs, tmp_path / "out", missing_teacher=True)
    _, summary, problems = answer([tmp_path / "out"])
    assert [p.kind for p in problems] == ["consumes_missing"]
    assert summary[0]["e_oneoff_kwh"] is None and summary[0]["e_student_kwh"] == pytest.approx(12_000 / 3.6e6)


def test_the_innermost_folder_names_the_stage_before_an_outer_one(tmp_path):
    """``sft_32b_to_7b`` around ``kd_32b_to_1b``; and a folder that somebody renamed says what the stage was."""
    outer = tmp_path / "sft_32b_to_7b"
    runs = [
        write_stage(outer, "caches", "kd_logit_caching", 1000.0),
        write_stage(outer, "kd_32b_to_1b", "train", 100.0),
    ]
    labels = [read(f / "energy.json").labels for f in import_runs(runs, tmp_path / "out").folders]
    assert (labels[1]["pipeline"], labels[1]["student"]) == ("kd", "1b")
    run = write_stage(tmp_path, "renamed", "sft_32b_to_1b_256", 400.0)
    (run / "stages" / "sft_32b_to_1b_256").rename(run / "stages" / "synthetic_tulu_generation_256")
    assert one(import_runs([run], tmp_path / "out2")).stage == "teacher_generation"


def test_sft_on_what_a_teacher_wrote_is_synthetic_and_reads_the_last_of_one_folder(tmp_path):
    first = write_stage(tmp_path, "one", "synthetic_tulu_generation", 400.0, start_time=T0 - 900, end_time=T0 - 840)
    later = write_stage(tmp_path, "two", "synthetic_tulu_generation", 500.0, start_time=T0 - 600, end_time=T0 - 540)
    run = write_stage(tmp_path, "three", "sft_train", 100.0)
    for folder, name in (
        (first, "synthetic_tulu_generation"),
        (later, "synthetic_tulu_generation"),
        (run, "sft_train"),
    ):
        configured(folder, name, pipeline="sft", synthetic_data__synthetic_dataset_path="/any/synthetic_tulu")
    for folder in (first, later):
        (folder / "stages" / "synthetic_tulu_generation" / "power_log.csv").unlink()
    found = import_runs([first, later, run], tmp_path / "out")
    record = next(r for f in found.folders if (r := read(f / "energy.json")).stage == "student_training")
    assert record.labels["pipeline"] == "synthetic"
    (consumed,) = record.consumes
    assert (
        read(tmp_path / "out" / consumed.stage / consumed.name / consumed.version / "energy.json").energy.gross_j
        == 30_000
    )


def test_importing_again_changes_nothing(tmp_path):
    runs = [cache(tmp_path, "logit_caching", 1.0), trained(tmp_path, "kd_plain", 1.0, "logit_caching")]
    first = [(f, (f / "energy.json").read_text()) for f in import_runs(runs, tmp_path / "out").folders]
    assert [(f, (f / "energy.json").read_text()) for f in import_runs(runs, tmp_path / "out").folders] == first


# (b) nothing is left out silently


def test_a_run_that_left_only_snapshots_is_a_killed_attempt_of_its_last_one(tmp_path, capsys):
    run = write_stage(tmp_path, "kd_32b_to_1b", "student_train", 100.0, seconds=600.0)
    folder = run / "stages" / "student_train"
    data = json.loads((folder / "student_train.json").read_text())
    (folder / "student_train.json").unlink()
    (folder / "student_train__step100.json").unlink()
    for step, seconds in ((200, 100.0), (400, 300.0), (600, 500.0)):
        part = data | {"end_time": T0 + seconds, "gpu_energy_joules": 100.0 * seconds, "snapshot": True}
        (folder / f"student_train__step_{step}.json").write_text(json.dumps(part))
    shutil.copy(folder / "student_train__step_400.json", run / "stages")  # moved out of its folder
    found = import_runs([run], tmp_path / "out")
    assert found.folders == []
    ((_, joules),) = found.killed
    assert joules == pytest.approx(60_000, rel=0.001)  # to the end of its power log, 100 s after the last snapshot
    study, problems = judge([tmp_path / "out"])
    (row,) = study.rows
    assert (row["status"], row["pipeline"], row["student"]) == ("orphan", "kd", "1b")
    assert [(p["place"], p["joules"]) for p in study.places] == [("wasted", pytest.approx(joules))]
    assert "(killed)" in problems[0].message
    assert main(["import", str(run), "--out", str(tmp_path / "again")]) == 0
    assert "a killed attempt: wasted" in capsys.readouterr().out


def test_snapshots_of_a_stage_that_ended_are_part_of_it(tmp_path):
    run = write_stage(tmp_path, "x", "burn_in", 100.0)
    folder = run / "stages" / "burn_in"
    data = json.loads((folder / "burn_in.json").read_text())
    part = data | {"start_time": T0 + 0.0004, "gpu_energy_joules": 10.0}
    (folder / "burn_in__step_7.json").write_text(json.dumps(part))
    found = import_runs([run], tmp_path / "out")
    assert (len(found.folders), found.killed) == (1, [])


def test_a_file_of_another_stem_a_summary_and_a_lone_power_log_come_in(tmp_path):
    renamed = write_stage(tmp_path, "a", "burn_in", 100.0)
    (renamed / "stages" / "burn_in" / "burn_in.json").rename(renamed / "stages" / "burn_in" / "warm_up.json")
    told = write_stage(tmp_path, "b", "idle_check", 100.0, start_time=T0 + 1000, end_time=T0 + 1060)
    folder = told / "stages" / "idle_check"
    stage = json.loads((folder / "idle_check.json").read_text())
    (told / "experiment_summary.json").write_text(json.dumps({"experiment_id": "e", "stages": {"idle_check": stage}}))
    for path in folder.iterdir():
        path.unlink()
    lone = write_stage(tmp_path, "c", "kd_logit_caching", 300.0)
    for path in (lone / "stages" / "kd_logit_caching").glob("*.json"):
        path.unlink()
    found = import_runs([renamed, told, lone], tmp_path / "out")
    records = {r.params["stage_id"]: r for f in found.folders if (r := read(f / "energy.json"))}
    assert set(records) == {"burn_in", "idle_check"}
    assert records["idle_check"].quality.notes[0] == "from the experiment's summary: the stage left no file"
    ((where, joules),) = found.killed
    assert "teacher_logits" in str(where) and joules == pytest.approx(300 * 59.5, rel=0.001)


def test_copies_count_once_and_strange_stages_are_named_with_their_joules(tmp_path, capsys):
    run = write_stage(tmp_path, "x", "burn_in", 100.0)
    shutil.copytree(run, tmp_path / "copy")
    strange = write_stage(tmp_path, "y", "strange", 100.0)
    assert main(["import", str(run), str(tmp_path / "copy"), str(strange), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "the same record as" in out
    assert "(1.67 Wh): cannot tell the kind of stage from its name 'strange'" in out
    assert out.splitlines()[-1].startswith("1 stages and 0 killed attempts imported; 3 records left out, 1.67 Wh")


def test_an_earlier_session_in_an_appended_log_is_a_killed_attempt(tmp_path):
    run = write_stage(tmp_path, "x", "burn_in", 100.0)
    log = run / "stages" / "burn_in" / "power_log.csv"
    header, *rows = log.read_text().splitlines()
    earlier = [f"{T0 - 500 + i / 2},200.0,200.0" for i in range(101)]
    log.write_text("\n".join([header, *earlier, *rows]) + "\n")
    found = import_runs([run], tmp_path / "out")
    assert one(found).energy.gross_j == pytest.approx(6_000)
    assert [joules for _, joules in found.killed] == [pytest.approx(10_000)]


# (c) the integral against the file's own figures


@pytest.mark.parametrize(
    ("said", "flag"), [(6_000.0, None), (6_180.0, "crosscheck"), (6_600.0, "disputed"), (5_400.0, "disputed")]
)
def test_the_integral_is_compared_with_the_files_own_joules(tmp_path, said, flag):
    run = write_stage(tmp_path, "x", "burn_in", 100.0, said=said)
    record = one(import_runs([run], tmp_path / "out"))
    flags = set(record.quality.flags) & {"crosscheck", "disputed"}
    assert flags == ({flag} if flag else set())
    assert record.energy.error_j == pytest.approx(abs(said - 6_000), abs=60)
    if flag:
        assert "% apart" in " ".join(record.quality.notes)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"gpu_avg_power_watts": 120.0}, "average power 7200 J"),
        ({"total_energy_kwh": 0.01}, "total_energy_kwh is 36000 J"),
        ({"duration_seconds": 50.0}, "duration_seconds 50"),
        ({"said": 6_000 / 3.6e6}, "is kWh, not J"),
        ({"said": 6.0}, "is kJ, not J"),
        ({"said": 6_000_000.0}, "is mJ, not J"),
    ],
)
def test_figures_that_contradict_each_other_are_named(tmp_path, more, words):
    record = one(import_runs([write_stage(tmp_path, "x", "burn_in", 100.0, **more)], tmp_path / "out"))
    assert words in " ".join(record.quality.notes)
    assert {"disputed", "clock_step"} & set(record.quality.flags)
    assert record.energy.gross_j == pytest.approx(6_000)


def test_gaps_leave_the_energy_open(tmp_path):
    steady = one(import_runs([write_stage(tmp_path, "a", "burn_in", 100.0)], tmp_path / "o1"))
    holed = one(import_runs([write_stage(tmp_path, "b", "burn_in", 100.0, gap=(20, 40))], tmp_path / "o2"))
    assert steady.energy.error_j < 10
    assert holed.energy.error_j >= 100 * 20  # over 20 s it may have drawn anything between 0 and twice as much


def edited(tmp_path, edit, **more):
    run = write_stage(tmp_path, "x", "burn_in", 100.0, **more)
    log = run / "stages" / "burn_in" / "power_log.csv"
    log.write_text(edit(log.read_text()))
    return run


def scaled(text, factor):
    header, *rows = text.splitlines()
    return "\n".join([header, *(f"{r.split(',')[0]},{100 * factor},{100 * factor}" for r in rows)]) + "\n"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: scaled(t, 1000), "milliwatts?"),
        (lambda t: t.replace(",100.0,", ",100,0,"), "decimal commas"),
        (lambda t: t.replace(",", ";"), "semicolons"),
        (lambda t: t.replace("17693", "17693", 1).replace(f"{T0 + 0.1}", f"{1000 * T0:.0f}"), "milliseconds"),
        (lambda t: t.replace(f"{T0 + 0.1}", "2026-01-25T10:00:00"), "ISO text"),
        (lambda t: t.replace(f"{T0 + 0.1}", ""), "line 2 is not a reading"),
        (lambda t: t.replace(",100.0,", ",nan,", 1), "finite and not negative"),
    ],
)
def test_power_logs_that_cannot_be_read_are_one_line(tmp_path, edit, words):
    with pytest.raises(UserError, match=rf"power_log.csv: .*{words.replace('?', '.')}") as caught:
        import_runs([edited(tmp_path, edit)], tmp_path / "out")
    assert "\n" not in str(caught.value)


def shuffled(text, how):
    header, *rows = text.splitlines()
    return "\n".join([header, *how(rows)]) + "\n"


def back(rows):
    """The clock goes back by 10 s in the middle."""
    half = len(rows) // 2
    return rows[:half] + [f"{float(r.split(',')[0]) - 10},{r.split(',', 1)[1]}" for r in rows[half:]]


@pytest.mark.parametrize(
    ("edit", "flag", "joules"),
    [
        (lambda t: shuffled(t, lambda rows: rows[::-1]), "reversed_times", 6_000),
        (lambda t: shuffled(t, lambda rows: [r for row in rows for r in (row, row)]), "duplicated_times", 6_000),
        (lambda t: shuffled(t, back), "clock_step", 6_000),
        (lambda t: t.replace(",100.0,", ",9000000.0,", 1), "absurd_sample", 6_000),
        (lambda t: shuffled(t, lambda rows: [f"{T0 - 86400 + i},500,500" for i in range(60)]), "foreign_log", 6_000),
    ],
)
def test_what_is_wrong_with_a_power_log_is_named(tmp_path, edit, flag, joules):
    record = one(import_runs([edited(tmp_path, edit)], tmp_path / "out"))
    assert flag in record.quality.flags
    assert record.energy.gross_j == pytest.approx(joules, rel=0.01)
    if flag == "clock_step":
        assert record.energy.error_j >= 10 * 100 * 0.99


# (d) one line, whatever the file holds


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("start_time", None, "start_time is missing"),
        ("start_time", "2026-01-25T10:00:00", "is ISO text"),
        ("end_time", 1000 * (T0 + 60), "looks like milliseconds"),
        ("end_time", T0 - 5, "did not finish"),
        ("start_time", 12.0, "no time of this century"),
        ("gpu_energy_joules", "6000,5", "a decimal comma"),
        ("gpu_energy_joules", "much", "is not a number"),
        ("gpu_energy_joules", -5.0, "not a finite number of 0 or more"),
        ("gpu_avg_power_watts", [1.0], "is not a number"),
    ],
)
def test_values_that_are_none_end_in_one_line(tmp_path, key, value, words, capsys):
    run = write_stage(tmp_path, "x", "burn_in", 100.0)
    path = run / "stages" / "burn_in" / "burn_in.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert main(["import", str(run), "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "burn_in.json: " in line and key.split("_")[0] in line and words in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["burn_in.json", "power_log.csv", "config_burn_in__burn_in.json"])
def test_files_that_are_not_utf8_end_in_one_line(tmp_path, name, capsys):
    run = configured(write_stage(tmp_path, "x", "burn_in", 100.0), "burn_in")
    (run / "stages" / "burn_in" / name).write_bytes(b'{"stage_id": "\xff\xfe"}')
    assert main(["import", str(run), "--out", str(tmp_path / "out")]) == 1
    assert f"{name}: byte 14 is not UTF-8 text" in capsys.readouterr().err


def test_a_whole_document_is_asked_for(tmp_path):
    run = write_stage(tmp_path, "x", "burn_in", 100.0)
    (run / "stages" / "burn_in" / "burn_in.json").write_text('{"stage_id": ')
    with pytest.raises(UserError, match="not a whole JSON document"):
        import_runs([run], tmp_path / "out")


def test_a_stage_without_an_energy_of_its_own_has_its_power_logs(tmp_path):
    run = write_stage(tmp_path, "x", "burn_in", 100.0)
    path = run / "stages" / "burn_in" / "burn_in.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gpu_energy_joules": None}))
    record = one(import_runs([run], tmp_path / "out"))
    assert record.energy.gross_j == pytest.approx(6_000)
    assert "nothing to compare" in " ".join(record.quality.notes)


def test_environment_names_the_host_and_its_class(tmp_path):
    run = write_stage(tmp_path, "x", "burn_in", 100.0)
    told = {
        "hostname": "kn173",
        "gpus": [{"index": 0, "name": "NVIDIA H100 80GB HBM3", "power_limit_watts": 700.0}],
        "cpu": {"brand": "Xeon", "logical_cores": 48},
        "software": {"python_version": "3.10.13", "pytorch_version": "2.8.0+cu128", "transformers_version": "4.56.2"},
    }
    (run / "stages" / "burn_in" / "environment_burn_in__burn_in.json").write_text(json.dumps(told))
    import_runs([run], tmp_path / "out")
    (row,) = answer([tmp_path / "out"])[0]
    assert row["execution"] == "1× NVIDIA H100 80GB HBM3, torch 2, transformers 4"
    assert row["host"] == "kn173"


def test_a_killed_attempt_that_was_damaged_is_named(tmp_path):
    run = write_stage(tmp_path, "kd_32b_to_1b", "student_train", 100.0)
    for path in (run / "stages" / "student_train").glob("*.json"):
        path.unlink()
    ((folder, _),) = import_runs([run], tmp_path / "out", stage="student_training").killed
    (folder / "attempt.json").write_text('{"attempt": ')
    _, problems = judge([tmp_path / "out"])
    assert [p.kind for p in problems] == ["rejected"] and "the attempts cannot be read" in problems[0].message
