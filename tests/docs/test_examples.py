"""The examples in Python of the meter's pages run as printed."""

import re
import types
from pathlib import Path

import pytest

from distill_energy.store import sidecar as schema

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, repo):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILL_ENERGY_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setenv("PYTHONPATH", str(repo / "workflow_scripts"))


def test_the_entry(tmp_path, capfd):
    trained = []
    names = {"train": lambda: trained.append(1)}
    exec(blocks("measure.md")[0], names)
    assert trained == [1] and capfd.readouterr().err.startswith("fine-tune: ")
    assert names["m"].energy_j is not None and names["m"].source == "estimated"
    names["score"](["a"])
    (path,) = tmp_path.glob("results/command/*/*/energy.json")  # out=None keeps none
    assert schema.read(path).name == "fine-tune"


@pytest.mark.parametrize(("index", "kind"), [(1, "EnergyCallback"), (2, "LightningEnergyCallback")])
def test_the_callbacks_are_made_as_printed(index, kind):
    """What they do in a real Trainer: tests/energy/test_measure.py."""
    given = {}
    trainer = lambda *args, **named: given.update(named)  # noqa: E731
    names = {"Trainer": trainer, "model": None, "args": types.SimpleNamespace(), "rows": []}
    try:
        exec(blocks("measure.md")[index], names)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    (callback,) = given["callbacks"]
    assert type(callback).__name__ == kind or kind in str(type(callback).__mro__)


def test_the_meter(tmp_path):
    names = {}
    exec(blocks("meter.md")[0], names)
    energy, tokens = names["energy"], names["tokens"]
    assert tokens.processed == 128 and names["meter"].attempt.outcome == "completed"
    assert energy.gross_j is not None and names["part"].joules is not None
