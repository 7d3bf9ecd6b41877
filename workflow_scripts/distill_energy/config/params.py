"""What each stage is told: its resolved parameters, as types. Dicts exist where they are hashed or stored.

``ModelSource`` is still a mapping: ``config/sources.py``'s section with references resolved, read by ``models/``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError

from ..errors import UserError
from .base import Section
from .evaluation import Benchmark
from .schema import ExpectHardware, Prerun
from .sources import Dataset, Generation, Logits
from .training import Training

ModelSource = dict[str, Any]
Dtype = Literal["auto", "float32", "bfloat16"]


class PrerunParams(Prerun):
    expect: ExpectHardware | None = None


class ModelParams(Section):
    """Of ``preprocess model-…``: what is converted."""

    model: ModelSource


class DataParams(Section):
    """Of ``preprocess data-…``: a data set, and the model whose tokenizer makes it."""

    dataset: Dataset
    model: ModelSource


class LogitsParams(Section):
    """Of ``teacher_logits``."""

    model: ModelSource
    dtype: Dtype = "auto"
    logits: Logits


class GenerationParams(Section):
    """Of ``teacher_generation``; ``max_length`` is the data set's, in tokens."""

    model: ModelSource
    dtype: Dtype = "auto"
    generation: Generation
    max_length: int


class PipelineParams(Section):
    """A pipeline's own: α, T, and the ``options`` that its kind reads (``pipelines/``)."""

    kind: str
    alpha: float | None = None
    temperature: float | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class LogprobsParams(Section):
    """Of ``reference_logprobs``: a trained student, and the precision of the training that it is the reference of."""

    model: ModelSource
    precision: str


class TrainingParams(Section):
    """Of ``student_training``; ``teacher`` is None where the pipeline needs none."""

    model: ModelSource
    teacher: ModelSource | None = None
    pipeline: PipelineParams
    training: Training
    seed: int


class QuantisedParams(Section):
    """Of ``student_training`` where nothing is trained: what is quantised."""

    model: ModelSource
    dtype: Dtype = "auto"
    pipeline: PipelineParams


class ContaminationParams(Section):
    """Of ``contamination``: the length of an n-gram, in words."""

    words: int


class EvaluationParams(Section):
    """Of ``evaluation``: a suite of benchmarks by name."""

    model: ModelSource
    dtype: Dtype = "auto"
    engine: Literal["transformers", "vllm"] | None = None
    enable_thinking: bool | None = None
    benchmarks: dict[str, Benchmark]


#: Work of a stage (the key of its recipe) → its parameters.
PARAMS: dict[str, type[Section]] = {
    "prerun": PrerunParams,
    "preprocess_model": ModelParams,
    "preprocess_data": DataParams,
    "teacher_logits": LogitsParams,
    "teacher_generation": GenerationParams,
    "reference_logprobs": LogprobsParams,
    "student_training": TrainingParams,
    "quantised": QuantisedParams,
    "contamination": ContaminationParams,
    "evaluation": EvaluationParams,
}


def work_of(stage: str, params: dict[str, Any]) -> str:
    """Which work a stage does: ``preprocess`` is two of them, and a student may be quantised."""
    if stage == "preprocess":
        return "preprocess_data" if "dataset" in params else "preprocess_model"
    if stage == "student_training" and "training" not in params:
        return "quantised"
    return stage


def read_params(stage: str, params: dict[str, Any]) -> Any:
    """The parameters of a stage, typed. Raises UserError naming the key that its type does not know or allow.

    ``content``, the digest of a local source (``store.content``), decides the version and is read by no stage.
    """
    work = work_of(stage, params)
    try:
        return PARAMS[work].model_validate(_without_content(params))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(f"{work}: params.{where}: {problem['msg']}") from None


def _without_content(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    source = "source" in value or "kind" in value
    return {key: _without_content(item) for key, item in value.items() if not (source and key == "content")}
