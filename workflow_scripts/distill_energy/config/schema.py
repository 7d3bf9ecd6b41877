"""``config.yaml`` as a whole: the single source of what is run. Science only; executors live in ``profiles/``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from .base import Section
from .evaluation import Evaluation
from .names import check_name
from .sources import Dataset, Model, PrunedModel, Teacher
from .training import Pipeline, Training


class Grid(Section):
    """Carbon intensity: a country (ISO 3166 alpha-3) with CodeCarbon's table, or a number with its source."""

    country: str | None = Field(None, description="ISO 3166 alpha-3, such as FRA")
    region: str | None = Field(None, description="region of the country, where the table has one")
    g_per_kwh: float | None = Field(None, ge=0, description="a number instead of a country")
    source: str | None = Field(None, description="where the number is from")
    series: str | None = Field(
        None,
        description="CSV of columns `utc` (ISO 8601, start of the interval) and `g_per_kwh`: each run is weighted by "
        "when its joules were spent",
    )

    electricity_maps: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9]+(-[A-Za-z0-9]+)*$",
        description="zone of Electricity Maps, such as FR or US-CAL-CISO: each run is weighted by when its joules were "
        "spent; the token is ELECTRICITY_MAPS_TOKEN of the environment. Where it gives no figure, the country or the "
        "number stands in, and the ledger says why",
    )

    @model_validator(mode="after")
    def _number_has_source(self) -> "Grid":
        if self.g_per_kwh is not None and not self.source:
            raise ValueError("g_per_kwh needs a source")
        if self.series is not None and (self.g_per_kwh is not None or self.country is not None):
            raise ValueError("series stands alone: remove country and g_per_kwh")
        if self.series is not None and self.electricity_maps is not None:
            raise ValueError("give one of series and electricity_maps")
        return self


class ExpectHardware(Section):
    """Asserted by prerun; a different machine stops the run before anything is spent."""

    gpu_name: str | None = None
    gpu_count: int | None = Field(None, ge=0)
    min_cores: int | None = Field(None, gt=0)


class NodeMeter(Section):
    """A meter of the whole node, outside it: a command (Redfish, IPMI, a PDU's) or a CSV that yields watts."""

    command: str | None = Field(
        None,
        description="shell command that prints lines `[TIME] WATTS [UNIT]` (ISO 8601 or Unix seconds; W, mW, kW); "
        "started again when it ends, read as it writes while it runs",
    )
    csv: str | None = Field(
        None, description="file that a logger appends to: columns `utc` and one of `watts`, `mW`, `kW`"
    )
    unit: Literal["W", "mW", "kW"] = Field("W", description="of a number that the command prints without one")
    offset_s: float = Field(0.0, description="seconds added to the meter's times, where its clock is off")
    timeout_s: float = Field(10.0, gt=0, le=600, description="without a line after which a command is ended")
    in_total: bool = Field(
        False, description="the node's joules are the total, in the place of its parts, which are then only shown"
    )

    @model_validator(mode="after")
    def _one_source(self) -> "NodeMeter":
        if (self.command is None) == (self.csv is None):
            raise ValueError("give one of command and csv")
        return self


class EnergyConfig(Section):
    """How energy is measured."""

    interval_s: float = Field(0.5, ge=0.05, le=10, description="sampling interval, seconds")
    jitter: float = Field(0.0, ge=0, le=0.5, description="random share of the interval, against aliasing")
    cpu: Literal["auto", "rapl", "codecarbon", "off"] = Field(
        "auto", description="auto: RAPL where it is readable, else CodeCarbon's estimate"
    )
    pue: float = Field(1.0, ge=1, description="power usage effectiveness of the site; enters CO2e only")
    grid: Grid = Field(default_factory=Grid)
    node: NodeMeter | None = Field(None, description="a meter of the whole node, shown beside the sum of its parts")
    expect: ExpectHardware | None = Field(None, description="asserted by prerun")
    order_seed: int | None = Field(
        None,
        ge=0,
        description="trainings and evaluations that wait for the meter run in a random order drawn with this seed, so "
        "that a drift (of temperature, above all) does not fall on one pipeline; null: Snakemake's order",
    )


class Prerun(Section):
    """The idle baseline and the host's efficiency, measured before anything else."""

    idle_seconds: float = Field(10, gt=0)
    calibration_seconds: float = Field(4, ge=0, description="matrix products for the forecast; 0: none")
    cooldown_c: float | None = Field(
        None,
        gt=0,
        le=120,
        description="°C: wait (ten minutes at most) until no GPU is warmer, before idling",
    )


class Accounting(Section):
    """How joules become an answer."""

    baseline: str = Field("sft", description="the pipeline that N* compares with")
    inference_reference: str = Field(
        "teacher",
        description="whose J/token T* compares with: `teacher` (what it replaces), `baseline`, a student",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of every interval")
    estimate_error: float = Field(
        0.4,
        ge=0,
        le=2,
        description="relative half-width of a model's estimate (CodeCarbon was off by up to 0.4 in arXiv 2509.22092); "
        "common to all stages, so it widens energies and cancels in N*",
    )
    paired: bool = Field(
        False,
        description="compare the arms seed by seed, for studies whose runs of one seed share what varies (a host, an "
        "order of the data); the seeds then count once for all arms",
    )
    bootstrap: int = Field(2000, ge=100, description="resamples")
    drop_unusable_benchmarks: bool = Field(
        False, description="leave a benchmark out of Q, by name, where the teacher is not above chance (else Q is null)"
    )


class Config(Section):
    """The whole configuration."""

    _origin: str = PrivateAttr("config.yaml")

    experiment: str | None = Field(
        None,
        description="name of the study: its answer lies in results/experiments/NAME, artifacts are shared by version; "
        "null: the answer lies in results/ itself",
    )
    warm_worker: bool = Field(
        False,
        description="stages on this host run in forked copies of one process that has loaded the libraries, measured "
        "as `prerun/worker`; for studies of many short stages; without effect where there is an NVIDIA GPU",
    )
    energy: EnergyConfig = Field(default_factory=EnergyConfig)
    prerun: Prerun = Field(default_factory=Prerun)
    models: dict[str, Model]
    datasets: dict[str, Dataset]
    teacher: Teacher
    teachers: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="models whose artifacts the pipelines learn from, `teacher.model` (Q's reference) among them; "
        "null: that one alone",
    )
    students: tuple[str, ...]
    pipelines: dict[str, Pipeline]
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...]
    training: Training
    evaluation: Evaluation
    accounting: Accounting = Field(default_factory=Accounting)
    teacher_store: str | None = Field(
        None,
        description="folder outside results/, or URL (s3://bucket/prefix, gs://…, file://…), in which teacher "
        "artifacts live and their consumers register",
    )

    @property
    def origin(self) -> str:
        """The file that it was read from, for messages."""
        return self._origin

    @field_validator("models", "datasets", "pipelines")
    @classmethod
    def _names(cls, value: dict) -> dict:
        if not value:
            raise ValueError("is empty")
        for name in value:
            check_name(name)
        return value

    @field_validator("experiment")
    @classmethod
    def _experiment(cls, value: str | None) -> str | None:
        return None if value is None else check_name(value)

    @field_validator("students", "seeds", "teachers")
    @classmethod
    def _distinct(cls, value: tuple | None) -> tuple | None:
        if value is None:
            return None
        if not value:
            raise ValueError("is empty")
        for item in value:
            if value.count(item) > 1:
                raise ValueError(f"{item!r} is listed twice")
        return value

    @model_validator(mode="after")
    def _references(self) -> "Config":
        def known(key: str, value: str, allowed) -> None:
            if value not in allowed:
                raise ValueError(f"{key}: {value!r} is not one of {', '.join(allowed)}")

        known("teacher.model", self.teacher.model, self.models)
        for student in self.students:
            known("students", student, self.models)
        for name, model in self.models.items():
            if isinstance(model, PrunedModel):
                known(f"models.{name}.of", model.of, self.models)
                if isinstance(self.models[model.of], PrunedModel):
                    raise ValueError(f"models.{name}.of: {model.of!r} is itself a pruned copy")
        for teacher in self.teachers or ():
            known("teachers", teacher, self.models)
        if self.teachers and self.teacher.model not in self.teachers:
            raise ValueError(f"teachers: {self.teacher.model!r}, Q's reference (teacher.model), is not among them")
        for name, pipeline in self.pipelines.items():
            for teacher in pipeline.teachers or ():
                known(f"pipelines.{name}.teachers", teacher, self.teachers or (self.teacher.model,))
            if pipeline.dataset is not None:
                known(f"pipelines.{name}.dataset", pipeline.dataset, self.datasets)
            for student in pipeline.students or ():
                known(f"pipelines.{name}.students", student, self.students)
        for name, benchmark in self.evaluation.benchmarks.items():
            if benchmark.kind == "reference" and benchmark.dataset is not None:
                known(f"evaluation.benchmarks.{name}.dataset", benchmark.dataset, self.datasets)
        known("accounting.baseline", self.accounting.baseline, self.pipelines)
        known(
            "accounting.inference_reference",
            self.accounting.inference_reference,
            ["baseline", "teacher", *self.students],
        )
        return self
