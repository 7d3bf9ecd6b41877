"""Warn when a stage's code changed and its recipe did not: ``python -m distill_energy.plan.code [--record]``.

``recipes.json`` beside this file holds, of each recipe, its number and a digest of the code that makes the stage's
artifact, without comments and docstrings. A digest that differs under the same number is a question, not an error: a
refactoring leaves the number alone.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path

from .recipes import RECIPES

PACKAGE = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_name("recipes.json")
#: Recipe → files and folders of the library that decide what its artifact holds.
CODE = {
    "prerun": ("prerun.py", "energy/idle_window.py"),
    "preprocess_model": ("models/stage.py", "models/gguf.py"),
    "preprocess_data": ("data", "models/template.py", "models/tiny.py"),
    "teacher_logits": ("teacher/logits.py", "kd/cache", "kd/weights.py", "models/logits.py", "models/pruned.py"),
    "teacher_generation": ("teacher/generation", "models/sources.py", "models/pruned.py"),
    "reference_logprobs": ("train/logprobs.py", "train/pairs.py", "models/logits.py"),
    "student_training": ("train", "kd/losses", "pipelines", "models/logits.py", "models/pruned.py"),
    "contamination": ("evaluate/contamination.py",),
    "quantised": ("models/quantised.py", "train/quantise.py", "pipelines/quantised.py"),
    "evaluation": ("evaluate", "models/logits.py"),
}


def _meaning(path: Path) -> str:
    """A file's syntax tree without docstrings: what a comment or a line break does not change."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def digest(recipe: str, package: Path = PACKAGE) -> str:
    """Hex digest of the code behind a recipe."""
    found = hashlib.sha256()
    for part in CODE[recipe]:
        place = package / part
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            found.update(f"{path.relative_to(package)}\n{_meaning(path)}\n".encode())
    return found.hexdigest()[:16]


def changed(recorded: dict[str, dict], package: Path = PACKAGE) -> list[str]:
    """Recipes whose code is not what was recorded under the same number."""
    return [
        name
        for name, number in RECIPES.items()
        if recorded.get(name, {}).get("recipe") == number and recorded[name]["code"] != digest(name, package)
    ]


def main(arguments: list[str]) -> int:
    """Print what changed; ``--record`` takes the code as it is."""
    if arguments == ["--record"]:
        now = {name: {"recipe": number, "code": digest(name)} for name, number in RECIPES.items()}
        RECORD.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        return 0
    for name in changed(json.loads(RECORD.read_text(encoding="utf-8"))):
        print(
            f"warning: the code of {name} changed and its recipe is {RECIPES[name]} still: if what it makes has "
            "another meaning, raise it in plan/recipes.py; then python -m distill_energy.plan.code --record"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
