"""How much work a planned stage is: model passes by kind, tokens and bytes, each as (low, likely, high).

Counted from the configuration alone; where the data set's artifact exists its real lengths replace the guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..config.training import Reference, Training
from ..models.count import parameter_count
from ..pipelines import get
from ..train.budget import GOLD_SHARE, evaluation_rows

Range = tuple[float, float, float]  # low, likely, high

#: Share of ``max_length`` that an encoded example fills, before any is seen; and the response's share of an example.
FILL: Range = (0.25, 0.5, 0.9)
RESPONSE: Range = (0.3, 0.55, 0.85)
#: Share of ``max_new_tokens`` that a teacher's answer takes, and of ``max_steps`` that early stopping leaves.
ANSWER: Range = (0.4, 0.75, 1.0)
STEPS: Range = (0.4, 0.8, 1.0)
#: Share of a training's evaluations that are the best so far, whose weights are kept.
BEST: Range = (0.3, 0.8, 1.0)
#: Share of ``max_new_tokens`` that a batch in lock step decodes: it runs until its longest answer ends.
LOCK_STEP: Range = (0.8, 0.97, 1.0)
#: Bytes of a kept token or a draw of the logit cache, by method (measured, docs/logit_cache.md), and what is kept.
LOGIT_BYTES = {"topk": 2.5, "head_tail": 2.3, "sampled": 0.8}
KEPT = {"topk": ("head",), "head_tail": ("head", "tail"), "sampled": ("tail",)}
#: (items, prompt tokens with its shots, answers scored by likelihood, new tokens) of benchmarks whose data is
# elsewhere.
KNOWN_TASKS = {
    "gsm8k": (1319, 120, 0, 200),
    "mmlu": (14042, 120, 4, 0),
    "ifeval": (541, 60, 0, 500),
    "alpaca_eval": (805, 50, 0, 400),
    "mt_bench_101": (3615, 250, 0, 250),
}


@dataclass(frozen=True)
class Term:
    """``tokens`` passed through a model of ``parameters``: ``train`` 6·P·T FLOPs, ``forward`` and ``generate``
    2·P·T."""

    kind: str  # train | forward | generate
    parameters: float
    tokens: Range
    computed: Range | None = None  # with those that a batch decodes after an answer has ended; None: as many

    @property
    def flops(self) -> Range:
        each = (6.0 if self.kind == "train" else 2.0) * self.parameters
        return tuple(each * t for t in self.tokens)


@dataclass(frozen=True)
class Workload:
    """One planned execution. ``seconds``: time that does not depend on the tokens (loading, idle measurement)."""

    stage: str
    name: str
    version: str
    terms: tuple[Term, ...] = ()
    seconds: Range = (2.0, 8.0, 25.0)
    bytes: Range = (0.0, 0.0, 0.0)
    labels: Mapping[str, Any] = field(default_factory=dict)
    consumes: tuple[tuple[str, str, str], ...] = ()
    #: Of a suite by benchmark, of a prerun by what it does: (terms, seconds).
    parts: Mapping[str, tuple[tuple[Term, ...], Range]] = field(default_factory=dict)
    times_done: Mapping[str, Range] = field(default_factory=dict)  # what is done so many times, whatever its tokens
    unknown: str | None = None  # why it cannot be estimated

    @property
    def key(self) -> tuple[str, str, str]:
        return self.stage, self.name, self.version

    @property
    def model(self) -> str | None:
        """What an earlier measurement must share to speak for this stage: the model that does the work."""
        return self.labels.get("student") or self.labels.get("teacher") or self.labels.get("model")


def times(one: Range | float, other: Range | float) -> Range:
    """Product of two ranges, end by end (the parts are taken to move together: the wider reading)."""
    a = one if isinstance(one, tuple) else (one,) * 3
    b = other if isinstance(other, tuple) else (other,) * 3
    return tuple(x * y for x, y in zip(a, b, strict=True))


def plus(*ranges: Range) -> Range:
    """Sum of ranges, end by end."""
    return tuple(sum(parts) for parts in zip(*ranges, strict=True))


def from_dict(data: Mapping[str, Any]) -> Workload:
    """A workload from a small mapping: stage, kind (forward | train | generate | evaluate), parameters, tokens, and
    optionally name, version, bytes_per_token, seconds, labels. ``tokens`` is a number or (low, likely, high)."""
    tokens = data.get("tokens", 0)
    span = tuple(float(t) for t in tokens) if isinstance(tokens, list | tuple) else (float(tokens),) * 3
    kind = "forward" if data.get("kind") == "evaluate" else data.get("kind", "forward")
    parameters = data.get("parameters")
    seconds = data.get("seconds", (2.0, 8.0, 25.0))
    return Workload(
        data["stage"],
        data.get("name", data["stage"]),
        data.get("version", ""),
        () if parameters is None else (Term(kind, float(parameters), span),),
        tuple(seconds) if isinstance(seconds, list | tuple) else (float(seconds),) * 3,
        times(span, float(data.get("bytes_per_token", 0.0))),
        data.get("labels", {}),
        unknown="the model's parameter count is unknown" if parameters is None else None,
    )


class Sizes:
    """Parameter counts of models and lengths of data sets, looked up once. ``known``: data set → tokens of an example
    and of its response, where they were seen."""

    def __init__(
        self,
        config: Mapping[str, Any],
        root: str | Path = "results",
        known: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        self.config = config
        self.known = known or {}
        self.root = Path(root)
        self._models: dict[str, float | None] = {}

    def parameters(self, name: str | None) -> float | None:
        """Parameters of a configured model; None where neither the configuration nor a file says."""
        if name not in self._models:
            self._models[name] = self._count(name)
        return self._models[name]

    def _count(self, name: str | None) -> float | None:
        model = (self.config.get("models") or {}).get(name)
        if model is None:
            return None
        spec = dict(model)
        if spec.get("source") == "pruned":
            spec["of"] = dict(self.config["models"][spec["of"]])
            stated = spec["of"].get("parameters")
            if stated and not parameter_count({k: v for k, v in spec.items() if k != "parameters"}):
                return None
        try:
            return parameter_count(spec)
        except Exception:
            return None

    def lengths(self, dataset: str, version: str | None = None) -> tuple[Range, Range]:
        """(tokens of an example, tokens of its response)."""
        config = self.config["datasets"][dataset]
        found = self._measured(dataset, version) or self.known.get(dataset)
        if found is not None:
            return ((found[0],) * 3, (found[1],) * 3)
        whole = times(FILL, float(config.get("max_length", 1024)))
        return whole, times(whole, RESPONSE)

    def _measured(self, dataset: str, version: str | None) -> tuple[float, float] | None:
        if version is None:
            return None
        path = self.root / "preprocess" / f"data-{dataset}" / version / "train.parquet"
        if not path.is_file():
            return None

        table = pq.read_table(path, columns=["input_ids", "loss_mask"])
        if not table.num_rows:
            return None
        tokens = pc.sum(pc.list_value_length(table["input_ids"])).as_py()
        labels = pc.sum(pc.list_flatten(table["loss_mask"])).as_py()
        return tokens / table.num_rows, (labels or 0) / table.num_rows


def workload(spec: Mapping[str, Any], sizes: Sizes) -> Workload:
    """The work of a planned stage, from its spec as JSON (``StageSpec.to_json()``)."""
    consumes = tuple((c["stage"], c["name"], c["version"]) for c in spec.get("consumes", ()))
    base = Workload(spec["stage"], spec["name"], spec["version"], labels=spec.get("labels", {}), consumes=consumes)
    make = {
        "prerun": _prerun,
        "preprocess": _preprocess,
        "teacher_logits": _logits,
        "teacher_generation": _generation,
        "reference_logprobs": _reference,
        "student_training": _training,
        "contamination": _contamination,
        "evaluation": _evaluation,
    }[spec["stage"]]
    return make(base, spec, sizes)


def _with(base: Workload, **changes: Any) -> Workload:
    return replace(base, **changes)


def _prerun(base: Workload, spec, sizes: Sizes) -> Workload:
    params = spec.get("params", {})
    asked = float(params.get("idle_seconds", 10)) + float(params.get("calibration_seconds", 4))
    parts = {}
    for kind, key, default in (("idle", "idle_seconds", 10), ("matmul", "calibration_seconds", 4)):
        parts[kind] = ((), 3 * (float(params.get(key, default)),))
    return _with(base, seconds=(asked + 1, asked + 5, asked + 20), parts=parts)


def _preprocess(base: Workload, spec, sizes: Sizes) -> Workload:
    model = spec.get("labels", {}).get("model")
    if model is None:
        dataset = sizes.config["datasets"][spec["labels"]["dataset"]]
        examples = float(dataset["n_train"] + dataset["n_validation"])
        tokens = times(sizes.lengths(spec["labels"]["dataset"], base.version)[0], examples)
        return _with(
            base,
            seconds=(2 + examples / 5000, 5 + examples / 1500, 20 + examples / 300),
            bytes=times(tokens, (2, 4, 8)),
        )
    parameters = sizes.parameters(model)
    if parameters is None:
        return _with(base, unknown=_lacking(model))
    return _with(
        base,
        seconds=(3 + parameters / 2e8, 8 + parameters / 5e7, 25 + parameters / 2e7),
        bytes=times((2, 2, 4), parameters),
    )


def _lacking(model: str | None) -> str:
    return f"the parameter count of {model} is unknown: set models.{model}.parameters"


def _data_version(base: Workload) -> str | None:
    return next((v for s, n, v in base.consumes if s == "preprocess" and n.startswith("data-")), None)


def _logits(base: Workload, spec, sizes: Sizes) -> Workload:
    teacher, dataset = spec["labels"]["teacher"], spec["labels"]["dataset"]
    parameters = sizes.parameters(teacher)
    if parameters is None:
        return _with(base, unknown=_lacking(teacher))
    examples = float(sizes.config["datasets"][dataset]["n_train"])
    whole, response = sizes.lengths(dataset, _data_version(base))
    logits = spec.get("params", {}).get("logits", {})
    method = logits.get("method", "head_tail")
    kept = sum(float(logits.get(part) or 0) for part in KEPT[method]) or 100.0
    size = LOGIT_BYTES[method] * kept + 8
    return _with(
        base,
        terms=(Term("forward", parameters, times(whole, examples)),),
        bytes=times(times(response, examples), (0.7 * size, size, 1.3 * size)),
    )


def _generation(base: Workload, spec, sizes: Sizes) -> Workload:
    labels = spec["labels"]
    teacher, dataset = labels.get("student") or labels["teacher"], labels["dataset"]  # a student may answer too
    parameters = sizes.parameters(teacher)
    if parameters is None:
        return _with(base, unknown=_lacking(teacher))
    generation = spec["params"]["generation"]
    examples = float(generation.get("n_prompts") or sizes.config["datasets"][dataset]["n_train"])
    whole, response = sizes.lengths(dataset, _data_version(base))
    prompt = tuple(max(w - r, 1.0) for w, r in zip(whole, response, strict=True))
    new = times(ANSWER, float(generation["max_new_tokens"]))
    served = generation.get("engine") == "vllm"
    start = (20.0, 60.0, 180.0) if served else base.seconds
    decoded = None if served else times(LOCK_STEP, examples * generation["max_new_tokens"])
    return _with(
        base,
        terms=(
            Term("forward", parameters, times(prompt, examples)),
            Term("generate", parameters, times(new, examples), decoded),
        ),
        seconds=start,
        bytes=times(times(plus(prompt, new), examples), (2, 4, 8)),
    )


def _answers(base: Workload, labels: Mapping[str, Any], sizes: Sizes) -> Range:
    """Tokens of a prompt with its generated answer."""
    whole, response = sizes.lengths(labels["dataset"], _data_version(base))
    prompt = tuple(max(w - r, 1.0) for w, r in zip(whole, response, strict=True))
    cap = (sizes.config.get("teacher") or {}).get("generation", {}).get("max_new_tokens", 512)
    cap = (labels.get("hyperparameters") or {}).get("max_new_tokens", cap)
    return plus(prompt, times(ANSWER, float(cap)))


def _reference(base: Workload, spec, sizes: Sizes) -> Workload:
    """A student's pass over both answers of each pair."""
    labels = spec["labels"]
    parameters = sizes.parameters(labels["student"])
    if parameters is None:
        return _with(base, unknown=_lacking(labels["student"]))
    generation = (sizes.config.get("teacher") or {}).get("generation") or {}
    pairs = float(generation.get("n_prompts") or sizes.config["datasets"][labels["dataset"]]["n_train"])
    tokens = times(_answers(base, labels, sizes), 2 * pairs)
    return _with(base, terms=(Term("forward", parameters, tokens),), bytes=(20 * pairs, 60 * pairs, 120 * pairs))


def _share_of_steps(training: Training) -> Range:
    """Of ``max_steps``: none is spared before the loss could have failed to fall ``patience`` times."""
    reference = training.reference_faithful
    rises = reference.stop_on_two_rises if isinstance(reference, Reference) else bool(reference)
    patience = 2 if rises else training.patience
    first = min((patience + 1) * training.eval_every / training.max_steps, 1.0)
    return tuple(max(share, first) for share in STEPS)


def _training(base: Workload, spec, sizes: Sizes) -> Workload:
    student, dataset = spec["labels"]["student"], spec["labels"]["dataset"]
    parameters = sizes.parameters(student)
    if parameters is None:
        return _with(base, unknown=_lacking(student))
    if "training" not in spec["params"]:  # it is quantised: loaded twice, rounded, saved
        return _with(
            base,
            seconds=(4 + parameters / 1e8, 10 + parameters / 2.5e7, 40 + parameters / 1e7),
            bytes=times((0.6, 1.4, 2), parameters),
        )
    training = Training.model_validate(spec["params"]["training"])
    whole = sizes.lengths(dataset, _data_version(base))[0]
    if any(stage == "teacher_generation" for stage, _, _ in base.consumes):
        whole = _answers(base, spec["labels"], sizes)
    kind = (spec["params"].get("pipeline") or {}).get("kind")
    steps = times(_share_of_steps(training), float(training.max_steps))
    tokens = times(times(steps, whole), training.batch_size * (2.0 if kind and get(kind).pairs else 1.0))
    evaluations = times(steps, 1.0 / training.eval_every)
    validation = float(min(sizes.config["datasets"][dataset]["n_validation"], evaluation_rows(training, GOLD_SHARE)))
    checked = times(times(evaluations, whole), validation)
    return _with(
        base,
        terms=(Term("train", parameters, tokens), Term("forward", parameters, checked)),
        bytes=times((2, 3, 4), parameters),
        labels={**base.labels, "pipeline_kind": kind},
        times_done={"keep": times(evaluations, BEST)},
    )


def _contamination(base: Workload, spec, sizes: Sizes) -> Workload:
    examples = float(sizes.config["datasets"][spec["labels"]["dataset"]]["n_train"])
    return _with(
        base, seconds=(1 + examples / 50_000, 3 + examples / 10_000, 10 + examples / 1000), bytes=(1e4, 1e5, 1e6)
    )


def _evaluation(base: Workload, spec, sizes: Sizes) -> Workload:
    labels = spec["labels"]
    model = labels.get("student") if labels.get("role") == "student" else labels.get("teacher")
    parameters = sizes.parameters(model)
    if parameters is None:
        return _with(base, unknown=_lacking(model))
    dataset = labels.get("dataset") or next(iter(sizes.config["datasets"]))
    whole = sizes.lengths(dataset, _data_version(base))[0]
    parts, seconds = {}, base.seconds
    for name, benchmark in spec["params"]["benchmarks"].items():
        forward, new, extra = benchmark_tokens(benchmark, whole)
        terms = (Term("forward", parameters, forward), Term("generate", parameters, new))
        parts[name] = (tuple(t for t in terms if t.tokens[2] > 0), extra)
        seconds = plus(seconds, extra)
    terms = tuple(term for some, _ in parts.values() for term in some)
    return _with(base, terms=terms, seconds=seconds, bytes=(5e4, 5e5, 5e6), parts=parts)


def benchmark_tokens(benchmark: Mapping[str, Any], whole: Range) -> tuple[Range, Range, Range]:
    """(forward tokens, generated tokens, further seconds) of one benchmark's definition."""
    kind = benchmark["kind"]
    items = float(benchmark.get("items") or 0)
    none = (0.0, 0.0, 0.0)
    if kind in ("gold_accuracy", "agreement"):
        return times(whole, items), none, none
    if kind == "choice":
        return times((40, 60, 100), 4 * items), none, none
    if kind in ("arithmetic", "instructions"):
        return times((30, 50, 90), items), times((0.3, 0.8, 1.0), items * benchmark.get("max_new_tokens", 40)), none
    if kind == "inference" and (benchmark.get("engine") == "vllm" or benchmark.get("workload")):
        levels, requests = float(len(benchmark.get("concurrency") or range(4))), float(benchmark.get("requests") or 64)
        prompts = (
            times((30, 60, 200), requests)
            if benchmark.get("workload")
            else 3 * (requests * benchmark["prompt_tokens"],)
        )
        answers = times((0.3, 0.8, 1.0) if benchmark.get("workload") else (1, 1, 1), requests * benchmark["new_tokens"])
        least = 2 * levels * float(benchmark.get("min_seconds", 2))  # where passes are shorter than that, they repeat
        return times(prompts, 2 * levels), times(answers, levels), (0.0, 0.5 * least, least)
    if kind == "inference":
        cells = float(len(benchmark.get("batch_sizes") or (8,)))
        least = 2 * cells * float(benchmark.get("min_seconds", 2))  # prefill and decode
        return none, none, (least, 1.5 * least, 4 * least)
    if kind == "reference":  # without a count, a few hundred rows
        count = times((50, 200, 1000), 1.0) if not items else (items,) * 3
        if benchmark["score"] == "likelihood":
            return tuple(n * w for n, w in zip(count, whole, strict=True)), none, none
        new = times((0.1, 0.4, 1.0), float(benchmark["max_new_tokens"]))
        return times(count, 60.0), tuple(n * w for n, w in zip(count, new, strict=True)), none
    known = KNOWN_TASKS.get(benchmark.get("task") or kind)
    if known is None:
        return none, none, (10.0, 60.0, 600.0)
    count, prompt, choices, new = known
    count = float(min(benchmark.get("limit") or count, count))
    shots = 1 + float(benchmark.get("few_shot") or 0)
    reads = times((0.7, 1.0, 1.4), count * prompt * shots * max(choices, 1))
    wrote = times((0.4, 0.7, 1.0), count * float(benchmark.get("max_new_tokens") or new))
    return reads, wrote if new else none, none
