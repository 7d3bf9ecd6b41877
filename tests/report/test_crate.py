"""A finished study as a Workflow Run RO-Crate: what the profiles say a crate must have, read again by rocrate."""

import json
import shutil

import pytest

from distill_energy.__main__ import main
from distill_energy.answer.aggregate import main as aggregate
from distill_energy.ledger.rows import counts
from distill_energy.report import crate as crates


@pytest.fixture(scope="module")
def study(demo_root, tmp_path_factory):
    root = shutil.copytree(demo_root, tmp_path_factory.mktemp("study") / "results")
    out = {"ledger": root / "ledger.parquet", "summary": root / "summary.parquet", "csv": root / "summary.csv"}
    aggregate(root, out, None, None, log=lambda _: None)
    return root


def test_without_the_library_it_says_what_to_install(study, repo, monkeypatch, capsys):
    import builtins

    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("rocrate"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    assert main(["crate", str(study), "--workflow", str(repo)]) == 1
    assert "pip install 'distill-energy[crate]'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def crate(study, repo, tmp_path_factory):
    rocrate = pytest.importorskip("rocrate.rocrate")
    out = tmp_path_factory.mktemp("out") / "crate"
    command = ["crate", str(study), "--out", str(out), "--config", str(repo / "config.yaml"), "--workflow", str(repo)]
    assert main(command) == 0
    return rocrate.ROCrate(out), out


def identifiers(value):
    return {v.id for v in (value if isinstance(value, list) else [value])}


def test_the_root_names_its_profiles_its_licence_and_the_answer(crate):
    read, _ = crate
    root = read.root_dataset
    assert identifiers(root["conformsTo"]) == {*crates.PROFILES, crates.WORKFLOW_PROFILE[0]}
    for field in ("name", "description", "datePublished", "license", "author"):
        assert root.get(field), field
    assert "Counted whole, " in root["description"]


def test_the_main_entity_is_the_workflow_that_the_run_names(crate):
    """Workflow Run Crate: the main entity MUST be the workflow, and the run's instrument MUST be it."""
    read, _ = crate
    snakefile = read.mainEntity
    assert {"File", "SoftwareSourceCode", "ComputationalWorkflow"} <= set(snakefile.type)
    assert snakefile["programmingLanguage"].type == "ComputerLanguage"
    run = read.dereference("#run")
    assert run["instrument"] is snakefile and run in read.root_dataset["mentions"]
    assert identifiers(run["object"]) == {"config.yaml"}
    assert {"answer/summary.csv", "answer/ledger.parquet"} <= identifiers(run["result"])


def test_every_execution_is_an_action_with_its_times_tool_and_joules(crate, study):
    """Process Run Crate: instrument, object, result, start and end; the workflow-run terms: resourceUsage."""
    from distill_energy.answer.aggregate import read_ledger

    read, out = crate
    rows = [row for row in read_ledger(study / "ledger.parquet")[0] if counts(row)]
    actions = [e for e in read.get_entities() if e.type == "CreateAction" and e.id != "#run"]
    assert len(actions) == len(rows) > 0
    for row in rows:
        key = f"{row['stage']}/{row['name']}/{row['version']}"
        action = read.dereference(f"#{key}")
        assert "SoftwareSourceCode" in action["instrument"].type
        assert (out / action["instrument"].id).is_file()
        assert identifiers(action["result"]) == {f"records/{key}/energy.json"}
        parents = {f"records/{parent}/energy.json" for parent in row["consumes"]}
        assert identifiers(action["object"]) == (parents or {"config.yaml"})
        assert (action["startTime"], action["endTime"]) == (row["started_utc"], row["created_utc"])
        assert float(action["resourceUsage"]["value"]) == row["total_j"]


def test_every_file_is_there_and_every_reference_leads_somewhere(crate):
    _, out = crate
    graph = json.loads((out / "ro-crate-metadata.json").read_text())
    assert crates.CONTEXT in graph["@context"]
    entities = {entity["@id"]: entity for entity in graph["@graph"]}

    def referred(value):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict) and "@id" in item:
                yield item["@id"]

    for entity in entities.values():
        if "File" in entity["@type"]:
            assert (out / entity["@id"]).is_file(), entity["@id"]
        for field, value in entity.items():
            for target in referred(value):
                assert target in entities or target.startswith("http"), (entity["@id"], field, target)


def test_what_is_missing_is_said_in_a_line(tmp_path, study, repo, capsys):
    pytest.importorskip("rocrate.rocrate")
    for arguments, words in (
        ([str(study), "--workflow", str(tmp_path)], "holds no Snakefile"),
        ([str(tmp_path), "--workflow", str(repo), "--config", str(repo / "config.yaml")], "no ledger.parquet"),
        ([str(study), "--out", str(study)], "is there already"),
    ):
        assert main(["crate", *arguments]) == 1
        assert words in capsys.readouterr().err
