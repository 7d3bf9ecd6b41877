"""Which stages a configuration implies, their versions and folders."""

from .build import Plan, build_plan
from .spec import Input, StageSpec, digest, make_spec

__all__ = ["Input", "Plan", "StageSpec", "build_plan", "digest", "make_spec"]
