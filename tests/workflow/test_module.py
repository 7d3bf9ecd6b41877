"""The workflow inside another one, as Snakemake's ``module``, as docs/sharing.md prints it."""

import os
import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def printed() -> str:
    """The Snakefile of the page, with this clone in the place of the one that it names."""
    page = (REPO / "docs" / "sharing.md").read_text(encoding="utf-8")
    text = re.search(r"```python\n(# a Snakefile.*?)```", page, re.DOTALL)[1]
    assert "distill-energy/Snakefile" in text
    return text.replace("distill-energy/Snakefile", str(REPO / "Snakefile"))


def test_another_workflow_uses_it_as_a_module(tmp_path):
    (tmp_path / "Snakefile").write_text(printed())
    (tmp_path / "study.yaml").write_text((REPO / "configs" / "smoke.yaml").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run", "--quiet", "reason"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    planned = dict(re.findall(r"^(\w+)\s+(\d+)$", done.stdout + done.stderr, re.MULTILINE))
    assert done.returncode == 0, done.stderr[-2000:]
    assert planned["energy_teacher_logits"] == "1" and planned["energy_student_training"] == "3"
    assert planned["paper_table"] == "1"
