"""A short campaign of random faults (benchmarks/faults.py runs the long one): nothing lost, nothing silent."""

import importlib.util

import pytest

from tests.energy import fakes


@pytest.mark.slow
@pytest.mark.skipif(fakes.compiler() is None, reason="no C compiler for the simulated GPU")
def test_one_fault_of_each_kind(repo):
    spec = importlib.util.spec_from_file_location("faults", repo / "benchmarks" / "faults.py")
    faults = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faults)
    said = []
    outcomes = faults.campaign(len(faults.KINDS), seed=1, say=said.append)
    assert outcomes["survived"] + outcomes["refused"] == len(faults.KINDS), said
    assert outcomes["refused"], "some faults cannot but be refused"
