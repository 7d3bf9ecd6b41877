"""A tiny student, tiny data and a stage context, for the tests of training."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from distill_energy.config.training import Training
from distill_energy.plan.spec import make_spec
from distill_energy.stage import StageContext

VOCABULARY = 384
ENERGY = {"interval_s": 0.2, "jitter": 0.25, "cpu": "auto"}
MODEL = {"source": "random", "layers": 2, "hidden": 32, "heads": 2, "vocabulary": VOCABULARY, "seed": 0}


class CountingMeter:
    """Counts tokens and, as joules, milliseconds of processor time: a number that rises as energy does."""

    def __init__(self, known: bool = True) -> None:
        self.tokens: dict[str, int] = {}
        self.phases: dict[str, float] = {}
        self.known = known

    def add_tokens(self, kind: str, n: int) -> None:
        self.tokens[kind] = self.tokens.get(kind, 0) + n

    @contextlib.contextmanager
    def phase(self, name: str):
        start, handle = self.joules(), SimpleNamespace(joules=None)
        yield handle
        handle.joules = None if start is None else self.joules() - start
        self.phases[name] = self.phases.get(name, 0.0) + (handle.joules or 0.0)

    def joules(self) -> float | None:
        return time.process_time() * 1e3 if self.known else None


def write_rows(path: Path, n: int, seed: int, shortest: int = 6, longest: int = 24, copies: bool = True) -> None:
    """Examples of random length; the response repeats the prompt, so that there is something to learn."""
    import pyarrow as pa

    from distill_energy.store.atomic import write_parquet

    random = np.random.default_rng(seed)
    rows = {"id": [], "prompt": [], "response": [], "input_ids": [], "loss_mask": [], "prompt_ids": []}
    for i in range(n):
        half = int(random.integers(shortest, longest + 1)) // 2
        prompt = random.integers(3, 40, half).tolist()
        answer = prompt if copies else random.integers(3, 40, half).tolist()
        rows["id"].append(f"e{seed}-{i}")
        rows["prompt"].append("")
        rows["response"].append("")
        rows["input_ids"].append([*prompt, *answer, 2])
        rows["loss_mask"].append([0] * half + [1] * (half + 1))
        rows["prompt_ids"].append(prompt)
    kinds = {"input_ids": pa.list_(pa.int32()), "loss_mask": pa.list_(pa.uint8()), "prompt_ids": pa.list_(pa.int32())}
    arrays = {k: pa.array(v, kinds.get(k, pa.string())) for k, v in rows.items()}
    write_parquet(path, pa.table(arrays))


def training(**changes) -> dict:
    """The shared recipe, small."""
    base = {
        "optimizer": "adamw",
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "max_steps": 12,
        "batch_size": 4,
        "precision": "fp32",
        "eval_every": 4,
        "checkpoint_every": 100,
    }
    return Training.model_validate(base | changes).model_dump(mode="json")


def params(
    kind: str = "sft", seed: int = 0, pipeline: dict | None = None, model: dict | None = None, **changes
) -> dict:
    """Parameters of a stage."""
    settings = {"kind": kind, "alpha": None, "temperature": None, "options": {}} | (pipeline or {})
    return {
        "model": model or MODEL,
        "teacher": None,
        "pipeline": settings,
        "training": training(**changes),
        "seed": seed,
    }


def context(folder: Path, parameters: dict, inputs: dict[str, Path], meter=None) -> StageContext:
    """A stage context in ``folder`` (``out`` and ``work``)."""
    spec = make_spec("student_training", "demo-tiny-s0", 1, parameters, root=str(folder / "results"), energy=ENERGY)
    out, work = Path(spec.folder), Path(spec.attempts) / "work"
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    return StageContext(
        spec, inputs, out, work, meter or CountingMeter(), lambda m: print(m, file=sys.stderr, flush=True)
    )


def run(folder: Path, parameters: dict, inputs: dict[str, Path], meter=None) -> tuple[dict, list[dict], StageContext]:
    """Run the stage; returns results, trajectory rows and the context."""
    from distill_energy.train.stage import main

    ctx = context(folder, parameters, inputs, meter)
    results = main(ctx)
    return results, trajectory(ctx.out), ctx


def trajectory(out: Path) -> list[dict]:
    """Rows of the trajectory artifact."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(out / "trajectory.parquet").read().to_pylist()
