"""What is evaluated. A suite is one rule and one artifact; a model's suite runs in one process."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from .base import Section
from .names import check_name
from .sources import Format


class _Benchmark(Section):
    in_quality: bool = True  # part of Q
    seed: int = 0


class GoldAccuracy(_Benchmark):
    """Share of held-out gold response tokens that the model's argmax predicts."""

    kind: Literal["gold_accuracy"]
    items: int = Field(64, gt=0)


class Choice(_Benchmark):
    """Multiple choice by log-likelihood: probability of the right choice, graded."""

    kind: Literal["choice"]
    items: int = Field(150, gt=0)


class Agreement(_Benchmark):
    """Share of held-out gold positions on which the model's argmax is the teacher's."""

    kind: Literal["agreement"]
    items: int = Field(64, gt=0)


class Arithmetic(_Benchmark):
    """Exact-answer arithmetic by greedy generation."""

    kind: Literal["arithmetic"]
    items: int = Field(32, gt=0)
    max_new_tokens: int = Field(32, gt=0)


class Instructions(_Benchmark):
    """Verifiable format instructions by greedy generation."""

    kind: Literal["instructions"]
    items: int = Field(32, gt=0)
    max_new_tokens: int = Field(48, gt=0)


#: Tasks of the harness whose rows may come from local files.
LOCAL_TASKS = ("gsm8k", "mmlu", "ifeval")


class LmEval(_Benchmark):
    """A task of lm-evaluation-harness by its name, or one of the user's own by the folder of its YAML."""

    kind: Literal["lm_eval"]
    task: str = Field(min_length=1)
    data: str | None = Field(None, description="local files of gsm8k, mmlu or ifeval; null: the task's own source")
    include_path: str | None = Field(None, description="folder of the user's own task YAMLs")
    metric: str | None = Field(None, description="of the task, by item; null: its first that is better when higher")
    filter: str | None = Field(None, description="of the task; null: its first")
    chance: float | None = Field(
        None, description="score without knowledge; null: 1 in the number of options, where there are options, else 0"
    )
    limit: int | None = Field(None, gt=0)
    few_shot: int | None = Field(None, ge=0)  # None: as published, where the files have examples
    chat: bool | None = None  # apply the chat template; None: to ifeval alone
    max_new_tokens: int | None = Field(None, gt=0)  # None: the task's own
    batch_size: int = Field(8, gt=0)

    @model_validator(mode="after")
    def _local(self) -> "LmEval":
        own = [key for key in ("include_path", "metric", "filter", "chance") if getattr(self, key) is not None]
        if self.task in LOCAL_TASKS and own:
            raise ValueError(f"{own[0]}: {self.task} is scored as published; give a task of your own another name")
        if self.task not in LOCAL_TASKS and self.data is not None:
            raise ValueError(
                f"data: is read for {', '.join(LOCAL_TASKS)} alone; another task names its files in its YAML"
                " (dataset_path, dataset_kwargs), whose folder is include_path"
            )
        return self


class Judge(Section):
    """Who judges: an OpenAI-compatible endpoint, or a local model (folder or hub id) by log-probabilities."""

    kind: Literal["openai", "local"]
    model: str
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float | None = Field(None, ge=0)  # None: as published, 0 for AlpacaEval, 0.8 for MT-Bench-101
    prompt_version: str = "1"

    @field_validator("base_url")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        """A URL is recorded everywhere: credentials belong in the environment (``api_key_env``)."""
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must be an http(s) URL")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("base_url must hold no user, password or query; the key comes from api_key_env")
        return value


def _proxy_outside(value):
    """A likelihood judge is a proxy: never part of Q."""
    judge = value.get("judge") if isinstance(value, dict) else None
    if isinstance(judge, dict) and judge.get("kind") == "local":
        if value.get("in_quality"):
            raise ValueError("in_quality: a local judge is a proxy and stays outside Q")
        return {**value, "in_quality": False}
    return value


class _Judged(_Benchmark):
    judge: Judge

    _proxy = model_validator(mode="before")(_proxy_outside)


class AlpacaEval(_Judged):
    """AlpacaEval 2: win rate against reference answers, as judged."""

    kind: Literal["alpaca_eval"]
    data: str | None = None
    reference: str | None = None  # JSON of reference outputs
    limit: int | None = Field(None, gt=0)
    max_new_tokens: int = Field(512, gt=0)


class MtBench101(_Judged):
    """MT-Bench-101: 13 tasks, judged per turn 1 to 10, minimum over turns."""

    kind: Literal["mt_bench_101"]
    data: str | None = None
    limit: int | None = Field(None, gt=0)
    max_new_tokens: int = Field(512, gt=0)


class ReferenceAnswers(_Benchmark):
    """The user's own held-out answers: their likelihood, their exact match, or a judge's preference against them."""

    kind: Literal["reference"]
    dataset: str | None = Field(None, description="a configured data set, whose validation rows are asked")
    data: str | None = Field(None, description="or a file of its own")
    format: Format | None = Field(None, description="of `data`; null: messages")
    score: Literal["likelihood", "exact_match", "judged"] = "likelihood"
    items: int | None = Field(None, gt=0, description="drawn by the seed; null: all")
    max_new_tokens: int = Field(256, gt=0)
    judge: Judge | None = None

    _proxy = model_validator(mode="before")(_proxy_outside)

    @model_validator(mode="after")
    def _whose(self) -> "ReferenceAnswers":
        if (self.dataset is None) == (self.data is None):
            raise ValueError("needs either dataset (its validation rows) or data (a file)")
        if self.format is not None and self.data is None:
            raise ValueError("format: is that of data; a data set has its own")
        if (self.judge is None) != (self.score != "judged"):
            raise ValueError("judge: is given where score is judged, and only there")
        return self


class Inference(_Benchmark):
    """J/token, J/answer and tok/s of serving: the j of T*. Never part of Q.

    Without ``engine`` and ``workload``, an eager loop of transformers at fixed lengths, prefill and decode apart.
    """

    kind: Literal["inference"]
    in_quality: Literal[False] = False
    batch_sizes: tuple[Annotated[int, Field(gt=0)], ...] = Field((8,), min_length=1)
    prompts: int = Field(8, gt=0)
    prompt_tokens: int = Field(64, gt=0)
    new_tokens: int = Field(32, gt=0)  # with a workload: tokens of an answer at most
    min_seconds: float = Field(2.0, ge=0)
    engine: Literal["transformers", "vllm"] | None = None  # null: transformers
    workload: str | None = None  # held_out, or a JSONL file of prompts; null: fixed lengths, no answer ends early
    requests: Annotated[int, Field(gt=0)] | None = None  # of a workload or of vllm; null: 64
    concurrency: tuple[Annotated[int, Field(gt=0)] | Literal["saturated"], ...] | None = Field(None, min_length=1)
    engine_options: dict[str, bool | int | float | str] | None = None  # further arguments of vllm.LLM

    @property
    def served(self) -> bool:
        """Whether requests are served, rather than batches run in lock step at fixed lengths."""
        return self.engine == "vllm" or self.workload is not None


Benchmark = Annotated[
    GoldAccuracy
    | Choice
    | Agreement
    | Arithmetic
    | Instructions
    | LmEval
    | ReferenceAnswers
    | AlpacaEval
    | MtBench101
    | Inference,
    Field(discriminator="kind"),
]

#: Benchmarks that compare a model's answers with the teacher's own artifact.
NEEDS_TEACHER = ("agreement",)


class Evaluation(Section):
    benchmarks: dict[str, Benchmark]
    suites: dict[str, tuple[str, ...]] | None = None  # None: one suite a benchmark
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    engine: Literal["transformers", "vllm"] | None = None  # of benchmarks that generate; null: transformers
    enable_thinking: bool | None = None  # told to templates that know it; null: the template's own default

    @model_validator(mode="after")
    def _suites(self) -> "Evaluation":
        if not self.benchmarks:
            raise ValueError("benchmarks is empty")
        for name in (*self.benchmarks, *(self.suites or ())):
            check_name(name)
        seen: set[str] = set()
        for suite, names in (self.suites or {}).items():
            for name in names:
                if name not in self.benchmarks:
                    raise ValueError(f"suites.{suite}: {name!r} is not one of {', '.join(self.benchmarks)}")
                if name in seen:
                    raise ValueError(f"suites.{suite}: {name!r} is in two suites")
                seen.add(name)
        missing = [name for name in self.benchmarks if self.suites and name not in seen]
        if missing:
            raise ValueError(f"suites: benchmark {missing[0]!r} is in no suite")
        return self

    def resolved_suites(self) -> dict[str, tuple[str, ...]]:
        """Suite name → benchmark names."""
        return self.suites or {name: (name,) for name in self.benchmarks}
