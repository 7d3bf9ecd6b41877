"""``distill-energy stage results/STAGE/NAME/VERSION``: one stage outside Snakemake, as for a debugger."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from ..config.load import load_config
from ..errors import UserError
from ..plan import build_plan
from ..plan.spec import StageSpec
from ..stage import execute, let_threads_sleep, module_of
from ..store.sidecar import SIDECAR_NAME, STAGES


def find(folder: Path, config: Path) -> StageSpec:
    """The spec of an artifact's folder under the configuration. Raises UserError if it implies no such stage."""
    parts = folder.parts
    if len(parts) < 3 or parts[-3] not in STAGES:
        raise UserError(f"{folder}: expected results/STAGE/NAME/VERSION, STAGE one of {', '.join(STAGES)}")
    root = str(Path(*parts[:-3])) if parts[:-3] else "."
    return build_plan(load_config(config), root).spec(*parts[-3:])


def described(spec: StageSpec) -> list[str]:
    """What a dry run prints: the work, its parameters and its inputs."""
    lines = [f"{spec.folder}: {spec.stage} by distill_energy.{module_of(spec)}.main, recipe {spec.recipe}"]
    whole = (Path(spec.folder) / SIDECAR_NAME).is_file()
    lines.append("its sidecar is there: the work would not be done again" if whole else "it has no sidecar yet")
    for item in spec.consumes:
        there = "there" if (Path(item.folder) / SIDECAR_NAME).is_file() else "MISSING"
        lines.append(f"reads {item.role}: {item.folder} ({there})")
    return [*lines, json.dumps(spec.params, indent=1, ensure_ascii=False)]


def run(spec: StageSpec) -> None:
    """Do the stage's work under the meter and commit its artifact, in this process."""
    let_threads_sleep()
    module = importlib.import_module(f"distill_energy.{module_of(spec)}")
    execute(spec, module.main)
