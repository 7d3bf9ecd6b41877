"""The diff that CONTRIBUTING.md shows adds a pipeline."""

import os
import re
import shutil
import subprocess
import sys

CHECK = """
from distill_energy.config import parse_config
from distill_energy.config.load import read_yaml
from distill_energy.config.params import read_params
from distill_energy.pipelines import get, kinds
from distill_energy.plan import build_plan

assert "soft" in kinds()
config = read_yaml("smoke.yaml")
config["pipelines"]["soft"] = {"kind": "soft", "temperature": 1.0}
plan = build_plan(parse_config(config, "smoke.yaml"))
assert len(plan.of("teacher_logits")) == 1  # kd's own
(run,) = [n for n in plan.of("student_training") if n.labels["pipeline"] == "soft"]
assert get("soft").settings(read_params(run.stage, run.params).pipeline).alpha == 0.0
"""


def test_a_pipeline_is_one_file(repo, tmp_path):
    text = (repo / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (diff,) = re.findall(r"```diff\n(.*?)```", text, re.DOTALL)
    shutil.copytree(repo / "workflow_scripts", tmp_path / "workflow_scripts", ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(repo / "configs" / "smoke.yaml", tmp_path)
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, text=True, check=True)
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "workflow_scripts")}
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
