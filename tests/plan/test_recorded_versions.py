"""Versions of existing artifacts: a change of the code that moves one would make paid work look unpaid."""

import json

import pytest

from distill_energy.config import load_config
from distill_energy.plan import build_plan


@pytest.mark.parametrize("config", ["config.yaml", "configs/olmo2.yaml"])
def test_versions_are_those_recorded(repo, config):
    """Recorded at 2aa43b2. Changed on purpose: record them anew and say so in the commit and in CHANGELOG.md."""
    recorded = json.loads((repo / "tests" / "plan" / "recorded_versions.json").read_text())[config]
    assert sorted("/".join(key) for key in build_plan(load_config(repo / config)).nodes) == recorded
