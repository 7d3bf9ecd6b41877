"""Any configuration is a plan or one clear line: no traceback, no hang, no plan without end."""

import copy
import datetime as dt
import math
import os

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill_energy.config import parse_config
from distill_energy.errors import UserError
from distill_energy.plan import build_plan

FILES = ("config.yaml", "configs/smoke.yaml", "configs/olmo2.yaml")
HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 7, 10, 2**31, 2**53, 2**63, 10**30, -(10**30)]),
    st.sampled_from([0.0, -0.5, 0.3, 1e-300, 1e300, math.inf, -math.inf, math.nan]),
    st.sampled_from(
        ["", " ", ".", "..", "a/b", "../x", "a\x00b", "name\n", "é" * 240, "-", "kd", "sft", "big", "1e9", "~"]
    ),
    st.sampled_from([dt.date(2024, 1, 1), b"bytes", {1, 2}, {"a": 1}, {}, [], [[]], [None], {1: 2}, {None: None}]),
    st.text(max_size=8),
    st.lists(st.integers(-2, 3), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(-1, 2), max_size=2),
)


def places(node, path=()):
    """Every place in a configuration."""
    if path:
        yield path
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(value, (*path, key))


def put(data, path, value, how):
    node = data
    for key in path[:-1]:
        node = node[key]
    if how == "drop":
        del node[path[-1]]
    elif how == "add" and isinstance(node[path[-1]], dict):
        node[path[-1]][value if isinstance(value, str) else "new"] = value
    elif how == "more" and isinstance(node[path[-1]], list):
        node[path[-1]].append(value)
    else:
        node[path[-1]] = value


@pytest.fixture(scope="module")
def configurations(repo):
    return [yaml.safe_load((repo / name).read_text(encoding="utf-8")) for name in FILES]


#: Examples to draw, each run others: for a long run. Without it the same 500.
MANY = int(os.environ.get("DISTILL_ENERGY_FUZZ_EXAMPLES", "0"))


@settings(
    max_examples=MANY or 500,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=not MANY,
)
@given(draw=st.data())
def test_a_plan_or_one_line(configurations, draw):
    data = copy.deepcopy(configurations[draw.draw(st.integers(0, len(FILES) - 1), label="file")])
    for _ in range(draw.draw(st.integers(1, 3), label="changes")):
        path = draw.draw(st.sampled_from(sorted(places(data), key=str)), label="place")
        how = draw.draw(st.sampled_from(["put", "drop", "add", "more"]), label="how")
        put(data, path, copy.deepcopy(draw.draw(HOSTILE, label="value")), how)  # a later change may change it
        if not isinstance(data, dict) or not list(places(data)):
            break
    try:
        plan = build_plan(parse_config(data, "fuzzed"))
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error) and len(str(error)) < 2000
    else:
        assert 0 < len(plan.nodes) < 10_000
