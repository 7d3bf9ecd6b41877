"""A context for ``teacher_logits`` on a tiny random teacher, and a script that runs it alone (to be killed)."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from distill_energy.config.params import read_params

MODEL = {"source": "random", "layers": 2, "hidden": 32, "heads": 2, "vocabulary": 384, "seed": 3}


@dataclass
class Meter:
    """Counts tokens as the real one does; has no energy."""

    tokens: dict[str, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str):
        yield

    def add_tokens(self, kind: str, n: int) -> None:
        self.tokens[kind] = self.tokens.get(kind, 0) + n


def context(root: Path, logits: dict[str, Any], model: dict[str, Any] = MODEL, processes: int | None = None):
    """A StageContext-like object; data at root/data, output at root/out."""
    params = {"model": model, "dtype": "float32", "logits": logits}
    messages: list[str] = []
    (root / "out").mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(
        spec=SimpleNamespace(params=params, seed=None, name="teacher-data", runs={"processes": processes}),
        params=read_params("teacher_logits", params),
        inputs={"data": root / "data"},
        out=root / "out",
        work=root / "work",
        meter=Meter(),
        log=messages.append,
        messages=messages,
    )


def write_data(folder: Path, n: int, seed: int = 0, longest: int = 40, vocabulary: int = 384) -> None:
    """train.parquet of random conversations: prompts, two label spans in some, lengths from 6 to ``longest``."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        length = int(rng.integers(6, longest))
        mask = np.zeros(length, np.uint8)
        start = int(rng.integers(1, length - 2))
        mask[start : start + max(1, (length - start) // 2)] = 1
        if i % 3 == 0:
            mask[-1] = 1
        ids = rng.integers(3, vocabulary, length).astype(np.int32)
        rows.append({"id": f"example-{i}", "input_ids": ids, "loss_mask": mask})
    schema = pa.schema([("id", pa.string()), ("input_ids", pa.list_(pa.int32())), ("loss_mask", pa.list_(pa.uint8()))])
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "train.parquet")


if __name__ == "__main__":
    from distill_energy.teacher.logits import main

    logits = {"method": "head_tail", "head": 16, "tail": 16, "shard_examples": 8}
    context_ = context(Path(sys.argv[1]), logits, processes=int(sys.argv[2]) if len(sys.argv) > 2 else None)
    context_.log = lambda message: print(message, flush=True)
    main(context_)
