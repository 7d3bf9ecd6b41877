"""What every test may use."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo() -> Path:
    """The project's folder."""
    return REPO


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Benchmark samples and traces that are not part of the project; tests that want them skip without them."""
    folder = Path(os.environ.get("DISTILL_ENERGY_TEST_DATA", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no reference data (set DISTILL_ENERGY_TEST_DATA)")
    return folder
