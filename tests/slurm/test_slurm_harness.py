"""What the SLURM tests and the profile rest on, without a cluster."""

from __future__ import annotations

import re

import yaml
from slurm_workflow import PROFILE, REPO, overlaps

MEASURED = re.compile(r"^rule (\w+):(?:(?!^rule ).)*?meter=1", re.MULTILINE | re.DOTALL)


def profile() -> dict:
    return yaml.safe_load(PROFILE.read_text())


def rules() -> dict[str, bool]:
    """Every rule's name, and whether it is measured."""
    text = "\n".join(path.read_text() for path in sorted((REPO / "rules").glob("*.smk")))
    return {name: name in MEASURED.findall(text) for name in re.findall(r"^rule (\w+):", text, re.MULTILINE)}


def test_overlaps_finds_stages_on_one_device_at_one_time() -> None:
    one, two = ("node0", "gpu0"), ("node1", "gpu0")
    apart = [(one, 0.0, 1.0, "a"), (one, 1.0, 2.0, "b"), (two, 0.0, 2.0, "c")]
    assert overlaps(apart) == []
    assert overlaps([*apart, (one, 1.9, 3.0, "d")]) == [("b", "d")]
    assert overlaps([*apart, (two, 0.5, 0.6, "d")]) == [("c", "d")]


def test_profile_names_every_measured_rule_and_no_other() -> None:
    # Snakemake accepts an unknown rule in set-resources without a word
    assert set(profile()["set-resources"]) == {name for name, measured in rules().items() if measured}


def test_measured_rules_get_a_node_of_their_own() -> None:
    for name, resources in profile()["set-resources"].items():
        assert resources["slurm_extra"] == "'--exclusive'", name
        assert "gres" not in resources, name
        assert resources["mem_mb"] > 0 and resources["runtime"] > 0, name


def test_profile_repeats_the_default_profile() -> None:
    default = yaml.safe_load((REPO / "profiles/default/config.yaml").read_text())
    mine = profile()
    for key, value in default.items():
        if key != "cores":  # of the login node there
            assert mine[key] == value, key


def test_profile_can_survive_preemption_and_cancelling() -> None:
    mine = profile()
    assert "slurm-no-requeue" not in mine and mine["slurm-requeue"] is True
    assert mine["slurm-status-command"] == "squeue"
    assert mine["retries"] >= 1


def test_restart_count_is_the_environments_or_unknown_with_a_reason(monkeypatch, tmp_path) -> None:
    from distill_energy.energy.identity import restarts

    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert restarts(None) == (None, None)
    assert restarts("7") == (None, "scontrol: No such file or directory")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert restarts("7") == (3, None)
