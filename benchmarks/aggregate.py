"""How the aggregate scales: ``python benchmarks/aggregate.py [sidecars]`` (10,000: at most 10 s and 500 MB).

Generates a campaign of that many sidecars, with evaluation artifacts for every model, then runs the aggregate in a
fresh process and prints its time and largest memory as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
CHILD = """
import json, resource, sys, time
start = time.perf_counter()
from distill_energy.answer.aggregate import main
root = sys.argv[1]
out = {k: f"{root}/{k}" for k in ("ledger.parquet", "summary.parquet", "summary.csv")}
lines = []
main(root, {"ledger": out["ledger.parquet"], "summary": out["summary.parquet"], "csv": out["summary.csv"]}, None,
     {"accounting": {"bootstrap": 2000}}, log=lines.append)
print(json.dumps({"seconds": round(time.perf_counter() - start, 2),
                  "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024), "log": lines[-1]}))
"""


def generate(root: Path, count: int, seeds: int = 2, items: int = 150) -> int:
    """Write about ``count`` sidecars: students × three pipelines × ``seeds``, each trained and evaluated."""
    sys.path.insert(0, str(REPO / "tests" / "answer"))
    import factory

    from distill_energy.store import atomic

    atomic.sync_file = atomic.sync_folder = lambda _: None  # a generated campaign need not survive a power cut
    students = max(1, round((count - 7) / (1 + 3 * seeds * 2)))
    base = list(factory.STUDENTS.values())
    for index in range(students):
        factory.STUDENTS[f"student{index}"] = base[index % len(base)]
    names = tuple(f"student{index}" for index in range(students))
    factory.write_power = lambda *_: None  # the aggregate does not read the traces
    factory.demo(root, seeds=tuple(range(seeds)), students=names)
    return sum(1 for _ in root.glob("*/*/*/energy.json"))


def main(count: int) -> int:
    """Generate, measure, print; the exit status says whether the limits for 10,000 hold, in proportion."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        sidecars = generate(Path(folder), count)
        print(
            json.dumps({"sidecars": sidecars, "generated_in_seconds": round(time.perf_counter() - start, 1)}),
            flush=True,
        )
        done = subprocess.run(
            [sys.executable, "-c", CHILD, folder],
            env={"PYTHONPATH": str(REPO / "workflow_scripts"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
    result = json.loads(done.stdout)
    print(json.dumps(result))
    return int(result["seconds"] > 10 * max(sidecars / 10_000, 0.3) or result["peak_mb"] > 500)


if __name__ == "__main__":
    sys.path.insert(0, str(REPO / "workflow_scripts"))
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
