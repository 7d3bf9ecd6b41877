"""The tiny workflow, end to end, and what is planned after each kind of change."""

import itertools
import json
import os
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from distill_energy.store import sidecar as schema
from distill_energy.store.artifact import damage

from .conftest import TINY, Workflow

TEACHER = {"teacher_logits", "teacher_generation"}
TARGETS = [
    "pareto.pdf", "stage_breakdown.pdf", "amortization.pdf", "ledger.parquet", "summary.parquet", "summary.csv",
    "report.html",
]  # fmt: skip

pytestmark = pytest.mark.slow


def sidecars(workflow):
    return sorted((workflow.folder / "results").glob("*/*/*/energy.json"))


def test_every_target_is_made(finished):
    for name in TARGETS:
        assert (finished.folder / "results" / name).stat().st_size > 0


def test_every_stage_has_an_honest_sidecar_and_whole_files(finished):
    found = sidecars(finished)
    stages = [schema.read(path).stage for path in found if "attempts" not in path.parts]
    assert set(stages) == set(schema.STAGES) - {"command", "reference_logprobs"}  # smoke.yaml has no preferences
    for path in found:
        record = schema.read(path)
        assert damage(path.parent, record) is None
        assert record.attempts[-1].outcome == "completed"
        assert pq.read_table(path.parent / "power.parquet").num_rows >= 1
        by = {c.component: c for c in record.energy.components}
        if not record.hardware.gpus:  # a GPU that is not there is unavailable, never 0
            assert by["gpu"].source == "unavailable" and by["gpu"].gross_j is None and by["gpu"].reason


def test_snakemake_report_has_every_figure_with_its_caption(finished, tmp_path):
    finished.run("--report", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    for title in ("Energy against quality", "Energy by stage", "What reuse does", "Summary"):
        assert title in page
    assert "Hollow points are dominated" in page


def test_second_run_plans_nothing(finished):
    assert not finished.planned()


def test_reuse_count_is_read_from_sidecars(finished):
    summary = pq.read_table(finished.folder / "results" / "summary.parquet").to_pandas()
    consumers = {}
    for path in sidecars(finished):
        record = schema.read(path)
        if record.stage == "student_training":
            for item in record.consumes:
                if item.stage in TEACHER:
                    consumers.setdefault(item.stage, set()).add(record.version)
    for pipeline, stage in (("kd", "teacher_logits"), ("synthetic", "teacher_generation")):
        rows = summary[summary.pipeline == pipeline]
        assert set(rows.n_reuse) == {len(consumers[stage])}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda d: (
                d["models"].update(new={"source": "pruned", "of": "big", "layers": 3}),
                d["students"].append("new"),
            ),
            {"student_training": 3, "evaluation": 3},
        ),
        (lambda d: d["seeds"].append(1), {"student_training": 3, "evaluation": 3}),
        (
            lambda d: d["pipelines"]["kd"].update(sweep={"alpha": [0.3, 0.5, 0.8], "temperature": [1, 2, 4]}),
            {"student_training": 8, "evaluation": 8},
        ),
    ],
    ids=["student", "seed", "sweep"],
)  # fmt: skip
def test_additions_plan_no_teacher_job(clone, change, expected):
    clone.edit(change)
    planned = clone.planned()
    assert not TEACHER & set(planned)
    assert {rule: planned[rule] for rule in expected} == expected
    assert not {"prerun", "preprocess_data", "preprocess_model", "contamination"} & set(planned)


def test_teacher_parameter_plans_its_dependents_and_back_plans_nothing(clone):
    clone.edit(lambda d: d["teacher"]["logits"].update(head=9))
    planned = clone.planned()
    assert planned["teacher_logits"] == 1
    assert planned["student_training"] == planned["evaluation"] == 1
    assert "teacher_generation" not in planned
    clone.edit(lambda d: d["teacher"]["logits"].update(head=8))
    measured = {"prerun", "preprocess_data", "teacher_logits", "teacher_generation", "student_training", "evaluation"}
    assert not measured & set(clone.planned())


def test_studies_with_a_name_share_artifacts_and_not_answers(clone):
    """Another study in the same folder leaves the first one's answer as it was, and counts as reuse."""

    def spent(folder):
        table = pq.read_table(folder / "where_it_went.parquet").to_pandas()
        return table.joules.sum(), set(table.place)

    results = clone.folder / "results"
    before, pareto = spent(results), (results / "pareto.pdf").read_bytes()
    first = clone.config.read_text()
    clone.edit(lambda d: d.update(experiment="second", seeds=[5], pipelines={"kd": d["pipelines"]["kd"]}))
    clone.edit(lambda d: d.update(accounting={**d["accounting"], "baseline": "kd"}))
    assert not TEACHER & set(clone.planned("answer"))
    clone.run("answer")
    second = results / "experiments" / "second"
    assert (second / "report.html").exists() and (results / "pareto.pdf").read_bytes() == pareto
    named = pq.read_table(second / "summary.parquet").to_pandas()
    assert set(named.n_reuse) == {2}  # its own training and the first study's
    assert "abandoned" not in spent(second)[1]
    clone.config.write_text(first)
    clone.run("results/summary.parquet", "--forcerun", "aggregate")
    assert spent(results) == before
    summary = pq.read_table(results / "summary.parquet").to_pandas()
    assert set(summary[summary.pipeline == "kd"].n_reuse) == {2}
    done = subprocess.run(
        [sys.executable, "-m", "distill_energy", "compare", str(results), str(second)],
        env={**os.environ, "PYTHONPATH": str(clone.repo / "workflow_scripts")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "only in A" in done.stdout and "B/A" in done.stdout


def test_what_is_known_to_be_wrong_is_said_before_any_job(tmp_path):
    workflow = Workflow(tmp_path)
    shutil.copy(TINY, workflow.config)
    workflow.edit(lambda d: d["datasets"]["demo"].update(max_length=4096))
    done = workflow.run("results/pareto.pdf", check=False)
    assert done.returncode and "beyond the 2048 positions of model big" in done.stdout + done.stderr
    assert not list(tmp_path.glob("results/*/*/*/energy.json"))


def test_scripts_touched_metadata_lost_keys_reordered(finished, clone, tmp_path):
    measured = {"prerun", "preprocess_data", "student_training", "contamination", "evaluation", *TEACHER}
    repo = tmp_path / "repo"
    repo.mkdir()
    for part in ("Snakefile", "configs", "envs", "rules", "workflow_scripts", "profiles", "report", "config.yaml"):
        source = finished.repo / part
        if source.is_dir():
            shutil.copytree(source, repo / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copyfile(source, repo / part)
    for path in (repo / "workflow_scripts").rglob("*.py"):
        path.write_text(path.read_text() + "\n# touched\n")
    other = Workflow(clone.folder, repo)
    assert not measured & set(other.planned())
    shutil.rmtree(clone.folder / ".snakemake")
    assert not measured & set(other.planned())
    clone.edit(lambda d: d.update(teacher=dict(reversed(d["teacher"].items()))))
    assert not measured & set(other.planned())


def test_fresh_clone_with_the_same_results_plans_no_measured_job(finished, tmp_path):
    other = finished.copy(tmp_path / "elsewhere")
    shutil.rmtree(other.folder / ".snakemake", ignore_errors=True)
    measured = {"prerun", "preprocess_data", "student_training", "contamination", "evaluation", *TEACHER}
    assert not measured & set(other.planned())


def test_removed_sidecar_is_restored_without_measuring_again(clone):
    path = next(iter((clone.folder / "results" / "teacher_logits").glob("*/*/energy.json")))
    before = schema.read(path)
    path.unlink()
    clone.run("--until", "teacher_logits")
    after = schema.read(path)
    assert after == before
    assert len(after.attempts) == len(before.attempts)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["training"].update(stepz=1), "training.stepz: unknown key"),
        (lambda d: d["teacher"].update(model="gpt"), "teacher.model: 'gpt' is not one of"),
        (lambda d: d["training"].update(max_steps=-1), "training.max_steps"),
        (lambda d: d["pipelines"]["kd"].update(kind="dk"), "tiny.yaml: pipelines.kd.kind: 'dk' is not one of"),
    ],
)
def test_bad_configuration_stops_before_any_job(clone, change, says):
    clone.edit(change)
    done = clone.run("--dry-run", check=False)
    assert done.returncode != 0
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_prints_its_statistics_once(clone):
    clone.edit(lambda d: d["seeds"].append(1))
    said = clone.run("--dry-run")
    text = said.stdout + said.stderr
    assert text.count("Job stats:") == 1
    assert "This was a dry-run" in text


def test_resources_on_the_command_line_do_not_lift_the_meter_limit(clone):
    clone.edit(lambda d: d["seeds"].append(1))
    done = clone.run("--dry-run", "--resources", "mem_mb=1000")
    assert "meter" in done.stdout + done.stderr
    spans = [a for p in sidecars(clone) for a in json.loads(p.read_text())["attempts"]]
    spans = sorted((a["start_mono_s"], a["end_mono_s"]) for a in spans)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


def test_two_workflows_share_a_teacher_store_and_count_each_others_reuse(clone, tmp_path):
    store = tmp_path / "store"
    results = clone.folder / "results"
    for stage in TEACHER:  # an artifact may be moved into a store: its version is its identity
        shutil.move(results / stage, store / stage)
        shutil.move(results / "attempts" / stage, store / "attempts" / stage)
    clone.edit(lambda d: d.update(teacher_store=str(store)))
    other = clone.copy(tmp_path / "other")
    assert not TEACHER & set(clone.planned())
    for workflow, seed in ((clone, 1), (other, 2)):
        workflow.edit(lambda d, seed=seed: d.update(seeds=[0, seed], pipelines={"kd": d["pipelines"]["kd"]}))
        workflow.edit(lambda d: d.update(accounting={"baseline": "kd"}))
        workflow.run("--until", "student_training")
    registered = list((store / "consumers" / "teacher_logits").glob("*/*/*.json"))
    # Seed 0 was trained before there was a store: its input moved, so it is looked at again, whole, and registered by
    # each folder that holds it. It is one training all the same.
    attempts = {json.loads(path.read_text())["attempts"][0]["id"] for path in registered}
    assert (len(registered), len(attempts)) == (4, 3)
    other.run("results/summary.parquet")
    summary = pq.read_table(other.folder / "results" / "summary.parquet").to_pandas()
    # Seed 0 lies in both folders and in the store, and is one training.
    assert set(summary[summary.pipeline == "kd"].n_reuse) == {3}


def test_one_stage_alone(clone):
    """Described, and made again, outside Snakemake: a new attempt beside the earlier one, the same artifact."""
    folder = next(clone.folder.glob("results/student_training/demo-sft-*/*"))
    relative = folder.relative_to(clone.folder)

    def stage(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "distill_energy", "stage", str(relative), "--config", str(clone.config), *arguments],
            env={**os.environ, "PYTHONPATH": str(clone.repo / "workflow_scripts"), "OMP_NUM_THREADS": "1"},
            cwd=clone.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip

    said = stage("--dry-run").stdout
    assert "distill_energy.train.stage.main" in said and "reads data: results/preprocess/data-demo" in said
    before = schema.read(folder / "energy.json")
    attempts = clone.folder / "results" / "attempts" / relative.relative_to("results")
    for path in (folder / "energy.json", attempts / "energy.json"):
        path.unlink()
    assert "it has no sidecar yet" in stage("--dry-run").stdout
    done = stage()
    assert done.returncode == 0, done.stderr
    after = schema.read(folder / "energy.json")
    assert (after.version, len(after.attempts)) == (before.version, len(before.attempts) + 1)
    relative = relative.with_name("0" * 12)
    wrong = stage()
    assert wrong.returncode == 1 and "the configuration does not imply it" in wrong.stderr
