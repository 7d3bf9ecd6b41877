"""Make the conda environment files from the locked pip requirements: `python envs/conda_files.py [--check]`.

Snakemake's `--sdm conda` copies an environment file away from its folder before it builds it, so `-r file` inside
would not be found: the pins are written out. What is installed without dependencies comes in NAME.post-deploy.sh,
which Snakemake runs after it has made the environment.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON = "3.11"
# name → (options of pip, whether the packages of requirements-nodeps.txt belong to it)
ENVIRONMENTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "cpu": (("--extra-index-url https://download.pytorch.org/whl/cpu",), True),
    "cuda": ((), True),
    "vllm": ((), False),
    "vllm-cpu": (("--extra-index-url https://download.pytorch.org/whl/cpu",), False),
    "evaluation": ((), True),
}


def pins(path: Path) -> list[str]:
    """The requirement lines of a file, without comments."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def render(name: str) -> dict[Path, str]:
    """The files of one environment: path → text."""
    options, with_nodeps = ENVIRONMENTS[name]
    requirements = HERE / f"requirements-{name}.txt"
    entries = [*options, *pins(requirements)]
    if name == "cpu":  # the build without CUDA, by its full name
        entries = [f"{entry}+cpu" if entry.startswith("torch==") else entry for entry in entries]
    lines = [
        f"# Made from {requirements.name} by envs/conda_files.py; change that file and run it again.",
        f"name: distill-energy-{name}",
        "channels:",
        "  - conda-forge",
        "  - nodefaults",
        "dependencies:",
        f"  - python={PYTHON}",
        "  - pip",
        "  - pip:",
        *(f'      - "{entry}"' for entry in entries),
    ]
    files = {HERE / f"{name}.yaml": "\n".join(lines) + "\n"}
    if with_nodeps:
        extra = " ".join(pins(HERE / "requirements-nodeps.txt"))
        files[HERE / f"{name}.post-deploy.sh"] = (
            "#!/bin/sh\n# Made by envs/conda_files.py from requirements-nodeps.txt.\nset -eu\n"
            f"pip install --no-deps {extra}\n"
        )
    return files


def main(check: bool) -> int:
    """Write the files, or with ``check`` name those that are out of date (exit status 1)."""
    stale = 0
    for name in ENVIRONMENTS:
        for path, text in render(name).items():
            if path.exists() and path.read_text() == text:
                continue
            stale += 1
            print(f"{path.name}: {'out of date' if check else 'written'}")
            if not check:
                path.write_text(text)
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
