"""A tiny model, a meter and a stage context for the tests of evaluation."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

from distill_energy.config.evaluation import Benchmark, Evaluation
from distill_energy.evaluate.session import Session
from distill_energy.models.sources import load_model, load_tokenizer
from distill_energy.plan.spec import make_spec
from distill_energy.stage import StageContext

MODEL = {"source": "random", "layers": 2, "hidden": 32, "heads": 2, "vocabulary": 384, "seed": 0}


class CountingMeter:
    """Counts tokens; its joules are seconds of wall time, so that they are positive and bounded by the test."""

    def __init__(self, known: bool = True) -> None:
        self.tokens: Counter[str] = Counter()
        self.phases: dict[str, float] = {}
        self.open: list[str] = []
        self.known = known

    def add_tokens(self, kind: str, n: int) -> None:
        assert kind in ("processed", "loss", "generated", "padding") and n >= 0
        self.tokens[kind] += n

    @contextlib.contextmanager
    def phase(self, name: str):
        assert not self.open, f"{name} inside {self.open}"
        self.open.append(name)
        window = SimpleNamespace(joules=None, wall_s=None)
        start = time.perf_counter()
        try:
            yield window
        finally:
            window.wall_s = time.perf_counter() - start
            self.phases[name] = self.phases.get(name, 0.0) + window.wall_s
            if self.known:
                window.joules = window.wall_s
            self.open.pop()

    def joules(self) -> float | None:
        return time.process_time() if self.known else None


def open_session(meter: CountingMeter | None = None, role: str = "teacher", **model) -> Session:
    """A session on a tiny random model in float32."""
    spec = {**MODEL, **model}
    return Session(
        load_model(spec, {}, "float32", device="cpu"),
        load_tokenizer(spec, {}),
        meter or CountingMeter(),
        lambda message: None,
        {},
        role,
        "float32",
    )


def benchmarks(**given) -> dict[str, Benchmark]:
    """Benchmarks as the stage gets them: validated by the configuration's schema."""
    evaluation = Evaluation.model_validate({"benchmarks": given})
    return dict(evaluation.benchmarks)


def context(
    folder: Path, names: dict[str, Benchmark], *, role="teacher", inputs=None, meter=None, **model
) -> StageContext:
    """A stage context of evaluation."""
    params = {"model": {**MODEL, **model}, "dtype": "float32"}
    params["benchmarks"] = {name: item.model_dump(mode="json") for name, item in names.items()}
    spec = make_spec("evaluation", "all-tiny", 1, params, labels={"role": role, "suite": "all"})
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    return StageContext(spec, inputs or {}, out, folder, meter or CountingMeter(), lambda message: None)
