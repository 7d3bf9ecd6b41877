"""The library's rooms: a room imports only from rooms below it, told from the imports themselves."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

#: From the ground up, as docs/architecture.md draws them.
ROOMS = (
    ("errors",),
    ("config",),
    ("context",),
    ("context",),
    ("store",),
    ("models",),
    ("pipelines",),
    ("plan",),
    ("energy",),
    ("measure",),
    ("callbacks",),
    ("data",),
    ("kd",),
    ("stage",),
    ("warm",),
    ("prerun",),
    ("teacher",),
    ("train",),
    ("evaluate",),
    ("ledger",),
    ("answer",),
    ("forecast",),
    ("preflight",),
    ("published",),
    ("report",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}


def imports(path: Path, package: Path):
    """(module within the library, line) of every import of a file, those inside functions included."""
    parts = ("distill_energy", *path.relative_to(package).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = list(parts[: -node.level]) if node.level else []
            base += (node.module or "").split(".") if node.module else []
            names = [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("distill_energy."):
                yield name.removeprefix("distill_energy."), node.lineno


@pytest.fixture(scope="module")
def package(repo):
    return repo / "workflow_scripts" / "distill_energy"


def test_every_room_is_known(package):
    found = {p.stem for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert found - {"__init__"} == set(FLOOR)


def test_a_room_imports_only_from_rooms_below_it(package):
    upward = []
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for name, line in imports(path, package):
            if FLOOR[name.split(".")[0]] > FLOOR[room]:
                upward.append(f"{path.relative_to(package)}:{line} imports {name}")
    assert not upward, "\n".join(upward)


def test_no_circle_of_imports(package):
    """Among files, imports inside functions included, but not those for type checkers alone."""
    modules = {}
    for path in package.rglob("*.py"):
        name = ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = path
    edges = {}
    for name, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        typing_lines = {
            line
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for line in range(node.lineno, node.end_lineno + 1)
        }
        targets = set()
        for target, line in imports(path, package):
            if line in typing_lines:
                continue
            owner = target if target in modules else target.rpartition(".")[0]
            if owner in modules and owner != name and not name.startswith(f"{owner}."):
                targets.add(owner)
        edges[name] = targets
    state: dict[str, int] = {}

    def walk(name, trail):
        state[name] = 1
        for target in edges[name]:
            if state.get(target) == 1:
                circle = [*trail[trail.index(target) :], target] if target in trail else [name, target]
                raise AssertionError(" → ".join(circle))
            if target not in state:
                walk(target, [*trail, target])
        state[name] = 2

    for name in edges:
        if name not in state:
            walk(name, [name])


def test_the_planner_loads_nothing_heavy(repo):
    code = (
        "import sys; from distill_energy.config import load_config; from distill_energy.plan import build_plan\n"
        "build_plan(load_config('config.yaml'))\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'pandas', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    environment = {"PYTHONPATH": str(repo / "workflow_scripts")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repo, env=environment)
