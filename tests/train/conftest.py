"""Data that the tests of training share."""

from pathlib import Path

import pytest

from .tiny import write_rows


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> dict[str, Path]:
    """Inputs of a stage: a data set, and a teacher's answers."""
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "data" / "train.parquet", 40, seed=1)
    write_rows(folder / "data" / "validation.parquet", 12, seed=2)
    write_rows(folder / "synthetic" / "train.parquet", 20, seed=3)
    write_rows(folder / "synthetic" / "validation.parquet", 6, seed=4)
    return {"data": folder / "data", "teacher_generation": folder / "synthetic"}
