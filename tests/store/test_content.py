"""A model folder or a data file that is edited under the same path is another one; a copy is the same."""

import copy
import os
import shutil

import pytest
import yaml

from distill_energy.config import parse_config
from distill_energy.plan import build_plan
from distill_energy.store import content


@pytest.fixture
def data(repo, tmp_path):
    config = yaml.safe_load((repo / "configs" / "smoke.yaml").read_text())
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(1000))
    rows.write_text('{"prompt": "a", "response": "b"}\n')
    config["models"]["big"] = {"source": "folder", "path": str(model)}
    given = {"source": "files", "path": str(rows), "format": "prompt_response", "n_train": 1, "n_validation": 1}
    config["datasets"] = {"demo": given}
    return config


def versions(config):
    return {(s.stage, s.name): s.version for s in build_plan(parse_config(copy.deepcopy(config))).nodes.values()}


def test_an_edited_source_changes_what_depends_on_it(data, tmp_path):
    before = versions(data)
    assert versions(data) == before
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "c"}\n')
    after = versions(data)
    changed = {key[0] for key in before if before[key] != after[key]}
    assert {"preprocess", "teacher_logits", "student_training"} <= changed and "prerun" not in changed
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    assert versions(data) == before  # changed back, the old artifacts answer
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\1" + bytes(999))
    assert versions(data)["teacher_logits", "big-demo"] != before["teacher_logits", "big-demo"]


def test_a_copy_and_other_files_change_nothing(data, tmp_path):
    before = versions(data)
    shutil.copytree(tmp_path / "model", tmp_path / "copy")
    os.utime(tmp_path / "copy" / "config.json", (1, 1))
    (tmp_path / "copy" / "README.md").write_text("x")
    assert content.content_of({"source": "folder", "path": str(tmp_path / "copy")}) == content.content_of(
        data["models"]["big"]
    )
    (tmp_path / "model" / "README.md").write_text("x")
    assert versions(data) == before


def test_a_large_file_is_sampled_and_still_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "WHOLE", 1000)
    path = tmp_path / "w"
    path.write_bytes(bytes(10_000_000))
    before = content.file_digest(path)
    path.write_bytes(bytes(9_999_999) + b"x")
    assert content.file_digest(path) != before
    path.write_bytes(bytes(9_999_999))
    assert content.file_digest(path) != before


def test_sources_that_are_not_there_are_for_the_stage_to_say(data):
    data["models"]["big"]["path"] = "/nowhere"
    assert versions(data)
