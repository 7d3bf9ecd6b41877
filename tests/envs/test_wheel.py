"""The wheel alone, in an environment that has what its metadata ask for and nothing else, far from the repository."""

import importlib.metadata
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPO = Path(__file__).resolve().parents[2]


def asked_for(requirements: list[str]) -> dict[str, importlib.metadata.Distribution]:
    """Distribution by name: what these requirements need, and what that needs."""
    found, todo = {}, [Requirement(text) for text in requirements]
    while todo:
        one = todo.pop()
        name = re.sub(r"[-_.]+", "-", one.name).lower()
        if name in found or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        found[name] = importlib.metadata.distribution(name)
        todo += [Requirement(text) for text in found[name].requires or ()]
    return found


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs ``distill-energy`` of the installed wheel in an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        folder,
    ]
    source = folder / "source"  # a copy, since building leaves files beside the source
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((REPO / name).read_bytes())
    (source / "workflow_scripts").symlink_to(REPO / "workflow_scripts")
    subprocess.run([*build, source], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    (packages,) = (folder / "env" / "lib").glob("python3*/site-packages")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    (metadata,) = packages.glob("distill_energy-*.dist-info")
    requires = importlib.metadata.Distribution.at(metadata).requires
    for distribution in asked_for(requires).values():
        for top in {Path(str(file)).parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(distribution.locate_file(top))
    assert not list(packages.glob("torch")), "the light installation has torch"
    empty = folder / "elsewhere"
    empty.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*arguments: str, check: bool = True) -> str:
        line = [folder / "env" / "bin" / "distill-energy", *map(str, arguments)]
        done = subprocess.run(line, cwd=empty, env=environment, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr[-2000:]
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_every_command_says_what_it_does(command):
    version = re.search(r'^version = "(.*)"', (REPO / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert command("--version").split() == ["distill-energy", version]
    names = ("summary", "compare", "forecast", "rates", "import", "replay", "init", "verify", "crate")
    said = command("--help")
    for name in names:
        assert name in said
        assert f"distill-energy {name}" in command(name, "--help")


@pytest.mark.slow
def test_the_published_table_a_new_study_and_its_forecast(command, tmp_path):
    command("replay", REPO / "configs" / "paper_table.yaml", tmp_path / "paper")
    assert (tmp_path / "paper" / "pareto.pdf").stat().st_size > 1000
    command("init", "--defaults", "--out", tmp_path / "mine.yaml")
    assert "total" in command("forecast", tmp_path / "mine.yaml")
    said = command("forecast", REPO / "configs" / "olmo2.yaml", check=False)  # a country's intensity is CodeCarbon's
    assert (
        said == "error: energy.grid.country needs the package codecarbon (its table), or give energy.grid.g_per_kwh\n"
    )


@pytest.mark.slow
def test_what_cannot_be_forecast_is_one_line_a_reason(command):
    """The packaged model's size is in a package that the light installation has not."""
    lines = [line for line in command("forecast", REPO / "config.yaml").splitlines() if "not forecast" in line]
    assert lines
    assert len(lines) == len({line.split(": ", 2)[-1] for line in lines}) <= 4
