"""A data artifact and stage contexts for generation tests, on a tiny random teacher."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

from distill_energy.config.params import read_params

TEACHER = {"source": "random", "layers": 2, "hidden": 64, "heads": 2, "vocabulary": 300, "seed": 0}
GENERATION = {
    "engine": "transformers",
    "temperature": 1.0,
    "top_p": 0.95,
    "max_new_tokens": 10,
    "min_new_tokens": 1,
    "n_prompts": None,
    "validation_share": 0.2,
    "batch_size": 3,
    "tensor_parallel": 1,
    "seed": 0,
}


class CountingMeter:
    """Token counts only: what a stage reports to its meter."""

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {}

    @contextlib.contextmanager
    def phase(self, name: str):
        yield

    def add_tokens(self, kind: str, n: int) -> None:
        self.tokens[kind] = self.tokens.get(kind, 0) + n


def context(folder, params, inputs=None, name="test"):
    """A stage context whose artifact is ``folder/out`` and whose scratch folder is ``folder/work``."""
    out, work = folder / "out", folder / "work"
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(
        spec=SimpleNamespace(params=params, name=name),
        params=read_params("teacher_generation" if "generation" in params else "preprocess", params),
        inputs=inputs or {},
        out=out,
        work=work,
        meter=CountingMeter(),
        log=lambda message: None,
    )


def make_data(folder, n_train=26, n_validation=4, model=TEACHER):
    """Preprocess a small generated data set; returns its folder."""
    from distill_energy.data.stage import main

    dataset = {
        "source": "generated", "n_train": n_train, "n_validation": n_validation,
        "seed": 0, "max_length": 512, "families": None,
    }  # fmt: skip
    ctx = context(folder, {"dataset": dataset, "model": model})
    main(ctx)
    return ctx.out


def generate(folder, data, generation=None, **changes):
    """Run the stage; returns (context, results)."""
    from distill_energy.teacher.generation import main

    params = {"model": TEACHER, "dtype": "float32", "generation": GENERATION | (generation or {}), "max_length": 512}
    ctx = context(folder, params | changes, {"data": data})
    return ctx, main(ctx)


def rows(ctx, name="train"):
    """Rows of an artifact's Parquet file."""
    import pyarrow.parquet as pq

    return pq.read_table(ctx.out / f"{name}.parquet").to_pylist()
