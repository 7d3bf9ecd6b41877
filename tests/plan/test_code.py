"""A stage's code that changes under the same recipe is asked about; comments and docstrings are not."""

import json
import shutil

import pytest

from distill_energy.plan.code import CODE, PACKAGE, RECORD, changed, digest
from distill_energy.plan.recipes import RECIPES


def test_every_recipe_has_code_and_a_record():
    assert set(CODE) == set(RECIPES) == set(json.loads(RECORD.read_text()))
    assert all((PACKAGE / part).exists() for parts in CODE.values() for part in parts)


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "package"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_what_is_said_and_what_is_not(copy):
    now = {name: {"recipe": number, "code": digest(name, copy)} for name, number in RECIPES.items()}
    loss = copy / "kd" / "losses" / "kd.py"
    text = loss.read_text(encoding="utf-8")
    loss.write_text(text.replace('"""', '"""Other words. ', 1) + "\n# a comment\n", encoding="utf-8")
    assert changed(now, copy) == []
    assert "temperature**2" in text
    loss.write_text(text.replace("temperature**2", "temperature**3", 1), encoding="utf-8")
    assert changed(now, copy) == ["student_training"]
    raised = {**now, "student_training": {"recipe": RECIPES["student_training"] - 1, "code": "other"}}
    assert changed(raised, copy) == []  # the number was raised: that is the answer
