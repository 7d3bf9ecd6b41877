"""A tokenizer and a stage context for the data tests."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from distill_energy.config.params import read_params
from distill_energy.models.tiny import tiny_tokenizer


class CountingMeter:
    """Token counts only: what the stage reports to its meter."""

    def __init__(self):
        self.tokens = {}

    def add_tokens(self, kind, n):
        self.tokens[kind] = self.tokens.get(kind, 0) + n


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer(384)


@pytest.fixture
def samples() -> Path:
    return Path(__file__).parent / "samples"


@pytest.fixture
def context(tmp_path):
    """A function that makes a stage context with given parameters and inputs."""

    def make(params, inputs=None, out="out"):
        (tmp_path / out).mkdir(exist_ok=True)
        (tmp_path / "work").mkdir(exist_ok=True)
        return SimpleNamespace(
            spec=SimpleNamespace(params=params, name="test"),
            params=read_params("preprocess", params),
            inputs=inputs or {},
            out=tmp_path / out,
            work=tmp_path / "work",
            meter=CountingMeter(),
            log=lambda message: None,
        )

    return make
