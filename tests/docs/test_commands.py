"""Every command of README and docs does what it says: the cheap ones are run, the dear ones planned as written."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
BIN = str(Path(sys.executable).parent)
STARTS = ("make ", "snakemake ", "python -m distill_energy", "distill-energy ", ".venv/bin/snakemake ")
#: Commands that cannot even be planned here, and why.
ELSEWHERE = {
    "--sdm conda": "makes conda environments from channels",
    "--workflow-profile profiles/slurm": "needs a SLURM (tests/slurm runs the profile)",
    "apptainer": "needs a container engine",
    "docker": "needs a container engine",
    "torchrun": "tests/train/test_torchrun.py runs it",
}


def commands():
    """(page, command) of every console block and every inline command."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"```(?:console|bash|sh)?\n(.*?)```", text, re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        lines += re.findall(r"`([^`\n]+)`", text)
        for line in lines:
            command = re.sub(r"\s+#.*$", "", line.strip()).removeprefix("$ ")
            command = re.sub(r"^DISTILL_ENERGY_\w+=\S+ ", "", command)
            if command.startswith(STARTS) and (page.name, command) not in found:
                found.append((page.name, command))
    return found


def planned(command: str) -> list[str]:
    """``make TARGET`` as the Snakemake commands that it would run; anything else as it is."""
    words = shlex.split(command)
    if words[0] != "make":
        return [command]
    done = subprocess.run([*words, "--dry-run", "VENV=.nowhere"], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if "snakemake --cores" in line] or [done.stdout]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A fresh folder with the repository's files, and a user's own configuration in it."""
    place = tmp_path_factory.mktemp("clone")
    for name in ("Snakefile", "rules", "workflow_scripts", "config.yaml", "configs", "profiles", "envs", "report"):
        os.symlink(REPO / name, place / name)
    own = (REPO / "configs" / "smoke.yaml").read_text()
    for name in ("mine.yaml", "YOURS.yaml"):
        (place / name).write_text(own)
    return place


def test_there_are_commands():
    assert len(commands()) > 20


@pytest.mark.parametrize(("page", "command"), commands(), ids=lambda value: str(value)[:60])
def test_a_documented_command_is_taken_as_written(page, command, folder):
    for words, reason in ELSEWHERE.items():
        if words in command:
            pytest.skip(reason)
    command = command.replace("CONFIG=…", "CONFIG=mine.yaml")
    for line in planned(command):
        line = line.replace(".nowhere/bin/", "").replace(".venv/bin/", "")
        if line.startswith("snakemake ") or " snakemake " in line:
            assert "…" not in line, f"{page}: {line} cannot be run as printed"
            asked = shlex.split(line[line.index("snakemake ") :])
            target = [word for word in asked if word.startswith("results/")]
            if "--workflow-profile" not in asked and "--cores" not in asked:
                asked += ["--cores", "1"]
            done = subprocess.run(
                [sys.executable, "-m", *asked, "--dry-run"],
                cwd=folder, capture_output=True, text=True, check=False,
                env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
            )  # fmt: skip
            assert done.returncode == 0, f"{page}: {line}\n{done.stderr[-1500:]}"
            for name in target:
                assert name in done.stdout + done.stderr, f"{page}: {line} does not plan {name}"
        elif line.startswith(("python -m distill_energy", "distill-energy")):
            words = [w for w in shlex.split(line) if w not in ("python", "-m", "distill-energy")]
            parts = [w for w in words if not w.startswith("distill_energy")]
            if "distill_energy.config.describe" in words:
                continue  # tests/config/test_describe.py
            if "distill_energy.energy" in words:
                parts = ["energy", *parts]
            from distill_energy import __main__ as cli
            from distill_energy.energy.__main__ import _parser
            from distill_energy.report.command import build_parser

            if parts and parts[0] in cli.APART:
                if parts[0] == "energy":
                    _parser().parse_args(parts[1:])
            else:
                build_parser(cli.APART).parse_args(parts)


def test_make_with_a_configuration_plans_the_figure(folder):
    """``--configfile`` takes as many arguments as follow it, and once swallowed the target."""
    for target in ("pareto", "report", "forecast", "paper", "all"):
        (line, *_) = planned(f"make {target} CONFIG=mine.yaml")
        words = shlex.split(line)
        assert words[words.index("--configfile") + 1 :] == ["mine.yaml"], line


def test_requirements_are_installed_when_they_change(tmp_path):
    """A CPU set-up does not stand for a CUDA one."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / ".installed-requirements-cpu").touch()

    def plan(which):
        command = ["make", "setup", "--dry-run", f"VENV={venv}", f"REQUIREMENTS=envs/requirements-{which}.txt"]
        return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout

    os.utime(venv / ".installed-requirements-cpu", (4e9, 4e9))  # newer than the requirements, whatever a checkout did
    assert "pip install" not in plan("cpu")
    assert "-r envs/requirements-cuda.txt" in plan("cuda")


ONLY_DECLARED = """
import sys, importlib.abc, importlib.metadata, re
declared = {re.split(r"[><=\\[; ]", r)[0].lower() for r in %r}
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "datasets", "snakemake", "codecarbon", "tokenizers", "peft"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from distill_energy.__main__ import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["summary", "--help"], ["energy", "run", "--help"]])
def test_the_command_runs_on_its_declared_dependencies_alone(arguments):
    import tomllib

    declared = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["dependencies"]
    done = subprocess.run(
        [sys.executable, "-c", ONLY_DECLARED % (declared,), *arguments],
        env={"PYTHONPATH": str(REPO / "workflow_scripts"), "PATH": BIN},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "distill" in done.stdout
