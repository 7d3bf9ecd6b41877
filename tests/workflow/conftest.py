"""A finished tiny workflow, and a way to ask Snakemake what it would do next."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
TINY = REPO / "configs" / "smoke.yaml"


class Workflow:
    """One workflow folder with a configuration of its own."""

    def __init__(self, folder: Path, repo: Path = REPO, python: str = sys.executable, **environment: str) -> None:
        self.folder = folder
        self.repo = repo
        self.config = folder / "tiny.yaml"
        self.python, self.environment = python, environment

    def edit(self, change) -> None:
        """Apply ``change`` to the configuration."""
        data = yaml.safe_load(self.config.read_text())
        change(data)
        self.config.write_text(yaml.safe_dump(data, sort_keys=False))

    def run(self, *args: str, check: bool = True) -> subprocess.CompletedProcess:
        """Call Snakemake in this folder."""
        command = [
            self.python, "-m", "snakemake", "--snakefile", str(self.repo / "Snakefile"),
            "--directory", str(self.folder), "--configfile", str(self.config),
            "--workflow-profile", str(self.repo / "profiles" / "default"), "--cores", "all", *args,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
        return done

    def planned(self, *args: str) -> Counter:
        """Rule → number of jobs that Snakemake would run."""
        done = self.run(*args, "--dry-run", "--quiet", "reason")
        found = Counter()
        for line in (done.stdout + done.stderr).splitlines():
            match = re.match(r"^(\w+)\s+(\d+)$", line.strip())
            if match and match[1] != "total":
                found[match[1]] = int(match[2])
        return found

    def copy(self, folder: Path) -> "Workflow":
        """The same workflow elsewhere, as a clone with the same results (new file times)."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
        return Workflow(folder, self.repo)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Workflow:
    """The tiny workflow, run to its end once a session. Tests that change anything copy it first."""
    workflow = Workflow(tmp_path_factory.mktemp("workflow"))
    shutil.copy(TINY, workflow.config)
    workflow.run()
    return workflow


@pytest.fixture
def clone(finished, tmp_path) -> Workflow:
    """A copy of the finished workflow with its Snakemake metadata, which a test may change."""
    shutil.copytree(finished.folder, tmp_path / "w", copy_function=shutil.copy2)
    return Workflow(tmp_path / "w")
