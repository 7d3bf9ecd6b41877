"""Time of the default evaluation suite on a model folder: seconds of wall and processor time by benchmark.

PYTHONPATH=workflow_scripts python benchmarks/evaluation.py FOLDER [--threads N] [--config config.yaml]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace


class Stopwatch:
    """Stands in for the meter: counts tokens, times phases, knows no joules."""

    def __init__(self) -> None:
        self.tokens: Counter[str] = Counter()
        self.phases: dict[str, dict[str, float]] = {}

    def add_tokens(self, kind: str, n: int) -> None:
        self.tokens[kind] += n

    @contextlib.contextmanager
    def phase(self, name: str):
        wall, cpu = time.perf_counter(), time.process_time()
        yield SimpleNamespace(joules=None, reason="not measured")
        self.phases[name] = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="a model folder (config, safetensors, tokenizer)")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--config", default="config.yaml")
    given = parser.parse_args()
    import torch
    import yaml

    from distill_energy.config.evaluation import Evaluation
    from distill_energy.evaluate.stage import main as evaluate
    from distill_energy.plan.spec import make_spec
    from distill_energy.stage import StageContext

    if given.threads:
        torch.set_num_threads(given.threads)
    section = yaml.safe_load(Path(given.config).read_text(encoding="utf-8"))["evaluation"]
    evaluation = Evaluation.model_validate(section)
    params = {
        "model": {"source": "folder", "path": given.folder},
        "dtype": evaluation.dtype,
        "benchmarks": {name: item.model_dump(mode="json") for name, item in evaluation.benchmarks.items()},
    }
    spec = make_spec("evaluation", "benchmark", 1, params, labels={"role": "teacher", "suite": "all"})
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        context = StageContext(spec, {}, out, out, watch, lambda text: print(text, file=sys.stderr))
        results = evaluate(context)
    total = {"wall_s": time.perf_counter() - STARTED, "cpu_s": time.process_time()}
    report = {"threads": torch.get_num_threads(), "total": total, "phases": watch.phases, "tokens": watch.tokens}
    print(json.dumps({**report, "results": results}, indent=1))


if __name__ == "__main__":
    STARTED = time.perf_counter()
    main()
