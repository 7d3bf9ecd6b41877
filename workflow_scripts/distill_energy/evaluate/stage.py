"""The evaluation stage: one model, one suite of benchmarks, one load of the weights."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ..config.evaluation import Benchmark, Inference, LmEval, ReferenceAnswers
from ..config.params import EvaluationParams
from ..context import Context
from ..errors import UserError
from .score import Score, above_chance

#: Kind of a benchmark → "module:function(session, name, params) -> Result".
RUNNERS = {
    "gold_accuracy": "gold:gold_accuracy",
    "agreement": "gold:agreement",
    "choice": "choice:choice",
    "arithmetic": "answers:arithmetic",
    "instructions": "answers:instructions",
    "lm_eval": "harness:lm_eval",
    "alpaca_eval": "alpaca:alpaca_eval",
    "mt_bench_101": "mtbench101:mt_bench_101",
    "reference": "reference:reference",
}


#: Requests that vLLM takes at a time where a benchmark's energy per request is not asked.
ENGINE_CONCURRENCY = 64
#: Benchmarks that a serving engine can answer: they ask for text alone, not for likelihoods or hidden states.
GENERATES = ("arithmetic", "instructions", "alpaca_eval", "mt_bench_101")
GENERATING_TASKS = ("gsm8k", "ifeval")


def runner(kind: str) -> Callable[..., Any]:
    """The function that runs a kind of benchmark. Raises UserError if there is none."""
    if kind not in RUNNERS:
        raise UserError(f"benchmark kind {kind!r} is not one of inference, {', '.join(RUNNERS)}")
    module, function = RUNNERS[kind].split(":")
    return getattr(import_module(f".{module}", __package__), function)


def main(ctx: Context[EvaluationParams]) -> dict[str, Any]:
    """Run the suite of ``ctx.spec`` and write its tables. Returns scores and token facts for the sidecar.

    A benchmark that raises is recorded as failed with its reason and the others go on; bad input (UserError) stops.
    """
    params = ctx.params
    for name, benchmark in params.benchmarks.items():
        if benchmark.kind != "inference":
            runner(benchmark.kind)
        if benchmark.kind == "agreement" and _role(ctx) != "teacher" and "teacher_evaluation" not in ctx.inputs:
            raise UserError(f"evaluation.benchmarks.{name}: agreement needs the teacher's evaluation of the same suite")
    session = open_session(ctx)
    outcome = run_suite(session, params.benchmarks, params.engine)
    _contamination(ctx, outcome)
    return _write(ctx, session, outcome)


def _role(ctx) -> str:
    return (ctx.spec.labels or {}).get("role", "student")


def open_session(ctx):
    """Load model and tokenizer once for the whole suite."""
    with ctx.meter.phase("start"):
        from ..models.sources import load_model, load_tokenizer
        from .session import Session

    params = ctx.params
    start = time.perf_counter()
    with ctx.meter.phase("load"):
        model = None
        if not all(by_vllm(benchmark, params.engine) for benchmark in params.benchmarks.values()):
            model = load_model(params.model, ctx.inputs, params.dtype)
        tokenizer = load_tokenizer(params.model, ctx.inputs)
    where = "" if model is None else f" on {model.device}, {model.dtype}"
    ctx.log(f"loaded in {time.perf_counter() - start:.1f} s{where}")
    return Session(
        model,
        tokenizer,
        ctx.meter,
        ctx.log,
        ctx.inputs,
        _role(ctx),
        params.dtype,
        work=ctx.work,
        enable_thinking=params.enable_thinking,
        source=(params.model, ctx.inputs),
    )


def by_vllm(benchmark: Benchmark, engine: str | None) -> bool:
    """Whether vLLM answers a benchmark: its own ``engine``, or the suite's for benchmarks that generate."""
    if isinstance(benchmark, Inference):
        return benchmark.engine == "vllm"
    if isinstance(benchmark, ReferenceAnswers):
        return engine == "vllm" and benchmark.score != "likelihood"
    if isinstance(benchmark, LmEval):
        return engine == "vllm" and benchmark.task in GENERATING_TASKS
    return engine == "vllm" and benchmark.kind in GENERATES


class Outcome:
    """What a suite yielded: results by benchmark, reasons of failures, rows of inference cost."""

    def __init__(self, benchmarks: dict[str, Benchmark]) -> None:
        self.benchmarks = benchmarks
        self.results: dict[str, Any] = {}
        self.failures: dict[str, str] = {}
        self.inference: list[dict[str, Any]] = []
        self.contaminated: dict[str, int] = {}
        self.flops: dict[str, float | None] = {}


def run_suite(session, benchmarks: dict[str, Benchmark], engine: str | None = None) -> Outcome:
    """Run every benchmark; only bad input (UserError) ends the suite.

    What the loaded model answers comes first; then it is let go, and vLLM answers the rest: one holds the device's
    memory at a time.
    """
    from .serving import vllm

    outcome = Outcome(benchmarks)
    served = {name: params for name, params in benchmarks.items() if by_vllm(params, engine)}
    _run(session, outcome, {name: params for name, params in benchmarks.items() if name not in served})
    if not served:
        return outcome
    session.unload()
    _run(session, outcome, {name: params for name, params in served.items() if params.kind == "inference"})
    generating = {name: params for name, params in served.items() if params.kind != "inference"}
    if generating:
        with vllm(session, None, ENGINE_CONCURRENCY) as session.engine:
            _run(session, outcome, generating)
        session.engine = None
    return outcome


def _run(session, outcome: Outcome, benchmarks: dict[str, Benchmark]) -> None:
    from .inference import inference
    from .resume import keep, kept

    for name, params in benchmarks.items():
        start, before = time.perf_counter(), session.operations.total()
        earlier = None
        try:
            if params.kind == "inference":
                outcome.results[name], rows = inference(session, name, params)
                outcome.inference += rows
            elif (earlier := kept(session, name, params.kind)) is not None:
                outcome.results[name] = earlier
                session.log(f"{name} was finished by an earlier attempt")
            else:
                outcome.results[name] = runner(params.kind)(session, name, params)
                outcome.results[name].facts["flops"] = _since(session, before)
                keep(session, name, params.kind, outcome.results[name])
        except UserError:
            raise
        except Exception as error:
            outcome.failures[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            session.log(f"{name} failed\n{traceback.format_exc()}")
            session.release()
            outcome.flops[name] = _since(session, before)
        else:
            own = _since(session, before) if earlier is None else earlier.facts.get("flops")
            outcome.flops[name] = outcome.results[name].facts["flops"] = own
            score = outcome.results[name].score
            shown = "" if score is None else f": {score:.4f}"
            session.log(f"{name}{shown} ({time.perf_counter() - start:.1f} s)")


def _since(session, before: float | None) -> float | None:
    """FLOPs counted since ``before``."""
    now = session.operations.total()
    return None if now is None or before is None else now - before


def _operations(session, outcome: Outcome) -> dict[str, Any]:
    """For the sidecar: FLOPs of all benchmarks, or why they are not known."""
    lacking = [name for name, flops in outcome.flops.items() if flops is None]
    if lacking:
        reason = session.operations.reason or f"{lacking[0]} was finished by an attempt that did not count them"
        return {"flops": None, "flops_reason": reason}
    return {"flops": sum(outcome.flops.values())}


def _contamination(ctx, outcome: Outcome) -> None:
    """Count the items whose prompt occurs in the training data that the context names: they are looked up, but for
    prompts that the teacher was not asked."""
    if "data" not in ctx.inputs:
        return
    from .contamination import flagged, read_flags, training_file

    train = training_file(ctx.inputs["data"])
    with ctx.meter.phase("contamination"):
        known = read_flags(ctx.inputs["contamination"]) if "contamination" in ctx.inputs else {}
        prompts = [(name, item.prompt) for name, result in outcome.results.items() for item in result.items]
        found = flagged([prompt for _, prompt in prompts], train, known)
    outcome.contaminated = {name: 0 for name, result in outcome.results.items() if result.items}
    for (name, _), hit in zip(prompts, found, strict=True):
        outcome.contaminated[name] += hit


def score_rows(outcome: Outcome, role: str, spent: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Rows of ``scores.parquet``. For the teacher, a score not above chance is ``unusable``."""
    rows = []
    for name, params in outcome.benchmarks.items():
        row = {
            "benchmark": name,
            "kind": params.kind,
            "in_quality": params.in_quality,
            "status": "ok",
            "n": 0,
            "contaminated": outcome.contaminated.get(name),
            **_spent(name, spent),
        }
        if name in outcome.failures:
            row |= {"status": "failed", "reason": outcome.failures[name]}
        else:
            result = outcome.results[name]
            row |= {"score": result.score, "stderr": result.stderr, "chance": result.chance}
            row |= {"n": len(result.items), "notes": result.notes}
            if (
                result.items
                and role == "teacher"
                and not above_chance(Score(name, result.score, result.stderr, result.chance))
            ):
                row |= {"status": "unusable", "reason": "the teacher is not above chance: a ratio to it means nothing"}
        rows.append(row)
    return rows


def _spent(name: str, spent: dict[str, list[Any]]) -> dict[str, Any]:
    """Seconds and joules of a benchmark's own phases (a judge's are in the sidecar's phase ``judge``)."""
    windows = [w for phase, ws in spent.items() if phase == name or phase.startswith(f"{name}:") for w in ws]
    if not windows:
        return {"seconds": None, "joules": None, "joules_reason": "no work of its own: it shares a forward pass"}
    unknown = [w for w in windows if w.joules is None]
    joules = None if unknown else sum(w.joules for w in windows)
    reason = unknown[0].reason if unknown else None
    return {"seconds": sum(w.seconds for w in windows), "joules": joules, "joules_reason": reason}


def _write(ctx, session, outcome: Outcome) -> dict[str, Any]:
    from ..models.sources import model_dtype
    from .contamination import PROMPTS, write_prompts
    from .gold import PREDICTIONS, write_predictions
    from .inference import write_inference
    from .result import write_items, write_scores

    rows = score_rows(outcome, session.role, session.spent)
    agreements = {
        name: session.memo[("gold", params.items, params.seed)]
        for name, params in outcome.benchmarks.items()
        if params.kind == "agreement" and name in outcome.results
    }
    if agreements:
        write_predictions(ctx.out / PREDICTIONS, agreements)
    write_items(ctx.out / "items.parquet", outcome.results)
    if session.role == "teacher":
        write_prompts(ctx.out / PROMPTS, (i.prompt for result in outcome.results.values() for i in result.items))
    write_inference(ctx.out / "inference.parquet", outcome.inference)
    write_scores(ctx.out / "scores.parquet", rows)
    used = model_dtype(session.dtype) if session.model is None else session.model.dtype
    facts: dict[str, Any] = {"dtype": str(used).removeprefix("torch."), **_operations(session, outcome)}
    for row in rows:
        name = row["benchmark"]
        if row["kind"] == "inference" and row["status"] == "ok":
            facts |= {f"{name}.{key}": value for key, value in outcome.results[name].facts.items()}
            continue
        facts[f"{name}.score"] = row.get("score")
        if row["status"] != "ok":
            facts[f"{name}.status"] = f"{row['status']}: {row['reason']}"
        if row["contaminated"]:
            facts[f"{name}.contaminated"] = row["contaminated"]
        for key, value in (outcome.results[name].facts if name in outcome.results else {}).items():
            facts[f"{name}.{key}"] = value
    return facts
