"""Every stage and model shape that a configuration implies, as jobs for ``bench``: each once, whatever its seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.schema import Config
from ..config.sources import PrunedModel
from ..pipelines import get
from ..plan.build import Plan
from ..plan.spec import StageSpec
from ..store.sidecar import STAGES

#: Data that the project makes or reads itself: their real lengths can be had before anything is paid for.
LOCAL = ("generated", "files")
#: Rows of a data set that are encoded to learn its lengths, at most.
ROWS = 2000
IDLE_S, CALIBRATION_S = 5.0, 3.0
OWN = ("gold_accuracy", "agreement", "choice")


@dataclass(frozen=True)
class Case:
    """One rate to measure. ``job`` is what ``bench`` reads; the rest names it in ``rates.parquet``."""

    stage: str
    model: str | None
    pipeline: str | None
    pipeline_kind: str | None
    data: str | None
    job: dict[str, Any] = field(compare=False, hash=False)

    @property
    def name(self) -> str:
        return "/".join(part for part in (self.stage, self.pipeline, self.model, self.data) if part)


def data_key(config: Config, dataset: str | None) -> str | None:
    """The data set where its lengths are known, else its longest example: unseen data sets of one length are one."""
    if dataset is None:
        return None
    source = config.datasets[dataset]
    return dataset if source.source in LOCAL else f"at most {source.max_length} tokens"


def with_shape(config: Config, name: str) -> dict[str, Any]:
    """A configured model with its ``shape`` and its source resolved."""
    model = config.models[name]
    found = model.model_dump(mode="json", exclude_none=True)
    if isinstance(model, PrunedModel):
        found["of"] = with_shape(config, model.of)
    return found


def origin(config: Config, name: str) -> str:
    """The model that a pruned one is cut from, or itself."""
    model = config.models[name]
    return origin(config, model.of) if isinstance(model, PrunedModel) else name


def cases(config: Config, plan: Plan) -> list[Case]:
    """In the order of the stages, since later ones read what the first make. A sweep's first setting stands for all."""
    found: dict[Case, Case] = {}
    for stage in STAGES:
        for spec in plan.of(stage):
            case = _case(config, spec)
            if case is not None:
                found.setdefault(case, case)
    return list(found)


def _case(config: Config, spec: StageSpec) -> Case | None:
    labels, params = spec.labels, dict(spec.params)
    dataset = labels.get("dataset")
    job: dict[str, Any] = {"stage": spec.stage, "params": params}
    if dataset is not None:
        given = config.datasets[dataset]
        job |= {"dataset": dataset, "max_length": given.max_length, "n_train": given.n_train}
        job |= {"answer_tokens": _answer_tokens(config, labels), "logits": config.teacher.logits.model_dump()}
    if spec.stage == "contamination":
        return None  # runs no model
    pipeline = kind = None
    data = data_key(config, dataset)
    if spec.stage == "prerun":
        model = None
        job |= {"idle_seconds": IDLE_S, "calibration_seconds": CALIBRATION_S}
    elif spec.stage == "preprocess":
        model = labels.get("model")
        if model is None:
            if config.datasets[dataset].source not in LOCAL:
                return None  # behind a hub: its rows cannot be read without it
            source = dict(params["dataset"])
            job["rows_of_stage"] = source["n_train"] + source["n_validation"]
            source |= {key: min(source[key], ROWS) for key in ("n_train", "n_validation")}
            job |= {"params": params | {"dataset": source}, "origin": origin(config, config.teacher.model)}
    elif spec.stage == "student_training":
        model, pipeline, kind = labels["student"], labels["pipeline"], params["pipeline"]["kind"]
        if get(kind).quantises:
            return None  # loading and saving, which the other stages' rates hold
        params["model"] = with_shape(config, model)
        if params.get("teacher"):
            params["teacher"] = with_shape(config, labels["teacher"])
        job |= {"params": params, "origin": origin(config, model), "teacher_origin": origin(config, labels["teacher"])}
    else:
        student = labels.get("role") in ("student", "sampler")
        model = labels["student"] if student else labels["teacher"]
        params["model"] = with_shape(config, model)
        job |= {"params": params, "origin": origin(config, model)}
        if spec.stage == "evaluation":
            data = None
            job |= _evaluation(config)
    name = "/".join(part for part in (spec.stage, pipeline, model, data) if part)
    return Case(spec.stage, model, pipeline, kind, data, job | {"name": name})


def _answer_tokens(config: Config, labels: Mapping[str, Any]) -> int:
    cap = (labels.get("hyperparameters") or {}).get("max_new_tokens")
    return cap or config.teacher.generation.max_new_tokens


def _evaluation(config: Config) -> dict[str, Any]:
    """Lengths and batch to measure at, and the project's own benchmarks."""
    benchmarks = config.evaluation.benchmarks
    cell = {"batch_size": 8, "prompt_tokens": 512, "new_tokens": 32}
    for benchmark in benchmarks.values():
        if benchmark.kind == "lm_eval":
            cell["batch_size"] = max(cell["batch_size"], benchmark.batch_size)
    for benchmark in benchmarks.values():
        if benchmark.kind == "inference":
            cell |= {"prompt_tokens": benchmark.prompt_tokens, "new_tokens": min(benchmark.new_tokens, 64)}
            cell["batch_size"] = max(benchmark.batch_sizes)
    own = {name: b.model_dump(mode="json") for name, b in benchmarks.items() if b.kind in OWN}
    return {"cell": cell, "own": own}


def tokenizer_of(config: Config, name: str, prepared: Mapping[str, Path]) -> str | None:
    """A folder that holds a model's tokenizer, where one is at hand without a hub."""
    first = origin(config, name)
    model = config.models[first]
    if first in prepared:
        return str(prepared[first] / "model")
    stated = getattr(model, "tokenizer", None) or getattr(model, "path", None)
    folder = Path(stated).expanduser() if stated else None
    return str(folder) if folder is not None and (folder / "tokenizer_config.json").is_file() else None


def needs_live_teacher(case: Case) -> bool:
    """Whether a training holds its teacher beside the student."""
    return case.stage == "student_training" and get(case.pipeline_kind or "sft").live_teacher
