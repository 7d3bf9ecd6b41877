"""No name leads out of its folder, whoever wrote it."""

import pytest

from distill_energy.energy.command import run_command
from distill_energy.errors import UserError
from distill_energy.ledger.build import make_sidecar
from distill_energy.store.paths import check_inside, inside
from distill_energy.store.sidecar import Component, Produced, dump, parse
from tests.evaluate.support import open_session


@pytest.fixture
def sidecar_text():
    part = Component(component="cpu", source="measured", method="rapl", gross_j=1.0)
    record = make_sidecar(("prerun", "host", "0" * 12), [part])
    record.produces = [Produced(path="a/b.parquet", bytes=1, sha256="0" * 64)]
    return dump(record)


BAD = ["..", ".", "", "a/b", "../x", "a\\b", "x\0", "x\n", "y" * 300]


@pytest.mark.parametrize("name", BAD)
def test_a_part_is_one_component(tmp_path, name):
    with pytest.raises(UserError):
        inside(tmp_path, name)


def test_a_folder_outside_is_never_emptied(tmp_path):
    root, precious = tmp_path / "root", tmp_path / "precious"
    root.mkdir()
    precious.mkdir()
    (root / "link").symlink_to(precious)
    for path in (precious, root / ".." / "precious", root / "link", root):
        with pytest.raises(UserError, match="does not lie inside"):
            check_inside(root, path)
    assert check_inside(root, root / "a" / "b") == root / "a" / "b"


def test_a_benchmarks_name_empties_nothing(tmp_path):
    """``a/../../precious`` once emptied that folder, with status 0."""
    session = open_session()
    session.work = tmp_path / "work"
    session.work.mkdir()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("x")
    with pytest.raises(UserError):
        session.scratch("a/../../../precious")
    assert (precious / "thesis").exists()


def test_the_name_of_a_measurement_stays_in_its_folder(tmp_path):
    with pytest.raises(UserError, match="--name"):
        run_command(["true"], tmp_path / "out", name="../x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", ["name", "version", "attempts.0.id", "produces.0.path"])
def test_a_record_that_names_another_folder_is_refused(tmp_path, field, sidecar_text):
    import json

    record = json.loads(sidecar_text)
    *path, last = field.split(".")
    place = record
    for key in path:
        place = place[int(key) if key.isdigit() else key]
    place[last] = "../../x"
    with pytest.raises(UserError, match=r"r\.json"):
        parse(json.dumps(record), "r.json")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000 + "]" * 5000,
        '{"a":' * 5000 + "1" + "}" * 5000,
        '{"schema_version": 1, "seed": ' + "9" * 5000 + "}",
    ],
    ids=["lists", "objects", "digits"],
)
def test_a_record_that_no_parser_likes_is_one_line(text):
    with pytest.raises(UserError, match=r"r\.json") as caught:
        parse(text, "r.json")
    assert "\n" not in str(caught.value)
