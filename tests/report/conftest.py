"""A demo results folder, written once."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "answer"))


@pytest.fixture(scope="session")
def demo_root(tmp_path_factory) -> Path:
    """Three students × three pipelines × two seeds."""
    import factory

    return factory.demo(tmp_path_factory.mktemp("demo") / "results")
