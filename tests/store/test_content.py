"""A model folder or a data file that is edited under the same path is another one; a copy is the same."""

import copy
import gzip
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


def test_a_tokenizer_folder_is_part_of_its_model(data, tmp_path):
    """Its template makes the data: edited in place, other data."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "chat_template.jinja").write_text("one")
    data["models"]["big"]["tokenizer"] = str(folder)
    before = versions(data)
    (folder / "chat_template.jinja").write_text("two")
    after = versions(data)
    assert after["preprocess", "data-demo"] != before["preprocess", "data-demo"]


@pytest.mark.parametrize("kind", ["link", "linked folder", "gz", "folder of parquet", "glob"])
def test_every_kind_of_place_is_fingerprinted_by_content(data, tmp_path, kind):
    """A link by what it points to; a folder by the files in it, wherever they lie; a compressed file by its bytes."""
    given = data["datasets"]["demo"]
    held = tmp_path / "held"
    held.mkdir()
    file = held / "rows.jsonl"
    file.write_text("1")
    if kind == "link":
        (tmp_path / "link.jsonl").symlink_to(file)
        given["path"] = str(tmp_path / "link.jsonl")
    elif kind == "linked folder":
        (tmp_path / "linked").symlink_to(held)
        given["path"] = str(tmp_path / "linked")
    elif kind == "gz":
        file = held / "rows.jsonl.gz"
        file.write_bytes(gzip.compress(b"1"))
        given["path"] = str(file)
    elif kind == "folder of parquet":
        file = held / "part" / "0.parquet"
        file.parent.mkdir()
        file.write_text("1")
        given["path"] = str(held)
    else:
        given["path"] = str(held / "*.jsonl")
    before = versions(data)
    file.write_bytes(gzip.compress(b"2") if kind == "gz" else b"2")
    changed = versions(data)
    assert changed["preprocess", "data-demo"] != before["preprocess", "data-demo"]
    if kind in ("folder of parquet", "glob"):  # one more file is another data set
        file.with_name(f"more{file.suffix}").write_text("3")
        assert versions(data)["preprocess", "data-demo"] != changed["preprocess", "data-demo"]


def test_linked_weights_are_read(data, tmp_path):
    """As the hub's cache keeps them: a folder of links into a store of blobs."""
    model, blob = tmp_path / "model", tmp_path / "blob"
    (model / "model.safetensors").rename(blob)
    (model / "model.safetensors").symlink_to(blob)
    before = versions(data)
    blob.write_bytes(b"\2" + bytes(999))
    assert versions(data)["teacher_logits", "big-demo"] != before["teacher_logits", "big-demo"]
