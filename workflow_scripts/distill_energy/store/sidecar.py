"""The sidecar ``energy.json``: who made an artifact, from what, at what energy.

One schema, validated on writing and on reading. Every energy carries its unit in its name (``_j``), every time is UTC
ISO 8601 and monotonic seconds, every unknown is ``null`` with a reason and never 0.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..config.names import check_part
from ..errors import UserError

SCHEMA_VERSION = 1
SIDECAR_NAME = "energy.json"
POWER_NAME = "power.parquet"
ATTEMPT_NAME = "attempt.json"  # of an attempt that others measured and that led to no artifact

Source = Literal["measured", "estimated", "unavailable"]
Outcome = Literal["completed", "failed", "killed", "preempted", "running"]
STAGES = (
    "prerun",
    "preprocess",
    "teacher_logits",
    "teacher_generation",
    "reference_logprobs",  # of a student that was trained before, over pairs of the teacher's answers and its own
    "student_training",
    "contamination",
    "evaluation",
    "command",  # any other work, measured by `python -m distill_energy.energy run`
)
TEACHER_STAGES = ("teacher_logits", "teacher_generation")


#: A component of a path: the record's folder, or a file beside its journal, is named by it.
Part = Annotated[str, AfterValidator(check_part)]


def _relative(path: str) -> str:
    """A path below the artifact's folder."""
    for part in path.split("/"):
        check_part(part)
    return path


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null")


class Component(_Strict):
    """Energy of one device over one window (an attempt, a phase, or all attempts)."""

    component: Literal["gpu", "cpu", "dram", "node"]  # node: a meter outside, of all the others and the rest
    device: str | None = None  # GPU UUID, RAPL zone, or None
    source: Source
    method: str | None = None  # nvml_counter, nvml_power_integral, rapl, codecarbon_process, …
    gross_j: float | None = None
    idle_j: float | None = None  # idle power × window; net = gross − idle
    crosscheck_method: str | None = None
    crosscheck_j: float | None = None
    error_j: float | None = None  # half-width bound on gross_j
    in_total: bool = True
    reason: str | None = None  # why gross_j is null
    idle_reason: str | None = None  # why idle_j is null

    @model_validator(mode="after")
    def _honest(self) -> "Component":
        for field in ("gross_j", "idle_j", "crosscheck_j", "error_j"):
            value = getattr(self, field)
            if value is not None and (not math.isfinite(value) or value < 0):
                raise ValueError(f"{field} = {value}: joules are finite and not negative")
        if self.gross_j is None and not self.reason:
            raise ValueError("gross_j is null without a reason")
        if self.source == "unavailable" and self.gross_j is not None:
            raise ValueError("an unavailable component has no joules")
        if self.source != "unavailable" and not self.method:
            raise ValueError("a component with a source needs a method")
        return self


class Quality(_Strict):
    """Quality of measurement of one window."""

    interval_asked_s: float | None = None
    interval_reached_s: float | None = None  # median
    largest_gap_s: float | None = None
    gaps: int | None = None  # gaps above three intervals
    coverage: float | None = None  # share of the window inside gaps no longer than three intervals
    flags: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


class Tokens(_Strict):
    """Token counts by kind; null where a stage has no such tokens."""

    processed: int | None = None  # attention mask 1
    loss: int | None = None  # label not masked
    generated: int | None = None
    padding: int | None = None


class Spread(_Strict):
    """A quantity over a window's readings."""

    median: float
    min: float
    max: float


class Health(_Strict):
    """What explains a GPU's joules over one window; null where the device does not tell."""

    device: str
    temperature_c: Spread | None = None
    sm_clock_mhz: Spread | None = None
    utilisation: Spread | None = None  # share of the time in which a kernel ran
    memory_used_bytes: Spread | None = None
    throttle: dict[str, float] | None = None  # reason → share of the readings
    slowed: float | None = None  # share of the readings with a reason that is heat or a weak supply
    readings: int


class Phase(_Strict):
    """A part of a stage that is booked apart, such as evaluation during training. Included in the stage's total."""

    name: str
    wall_s: float
    gross_j: float | None = None
    source: Source
    reason: str | None = None
    health: list[Health] = Field(default_factory=list)


class Attempt(_Strict):
    """One try of a stage on one host."""

    id: Part
    host: str
    boot_id: str | None = None
    pid: int | None = None
    slurm_job_id: str | None = None
    slurm_node: str | None = None  # several nodes of a test cluster are one host
    slurm_restart: int | None = None
    slurm_restart_reason: str | None = None  # why slurm_restart is null in a SLURM job
    start_utc: str
    end_utc: str | None = None
    start_mono_s: float
    end_mono_s: float | None = None
    wall_s: float | None = None
    outcome: Outcome
    reason: str | None = None
    components: list[Component] = Field(default_factory=list)
    quality: Quality = Field(default_factory=Quality)
    tokens: Tokens = Field(default_factory=Tokens)
    phases: list[Phase] = Field(default_factory=list)
    health: list[Health] = Field(default_factory=list)  # a GPU each


class Energy(_Strict):
    """Totals over all attempts. ``wasted_gross_j`` (attempts that did not complete) is part of ``gross_j``."""

    components: list[Component]
    gross_j: float | None = None
    idle_j: float | None = None
    wasted_gross_j: float | None = None
    error_j: float | None = None
    source: Source
    reason: str | None = None
    node_explained: float | None = None  # what the parts that are known explain of the node's joules, as a share


class Consumed(_Strict):
    """An artifact that the stage read."""

    role: str
    stage: Part
    name: Part
    version: Part


class Produced(_Strict):
    """A file of the artifact, relative to its folder."""

    path: Annotated[str, AfterValidator(_relative)]
    bytes: int
    sha256: str
    rows: int | None = None


class PerToken(_Strict):
    value: float | None = None
    divides_by: Literal["processed", "loss", "generated"] | None = None
    reason: str | None = None


class Co2e(_Strict):
    g: float | None = None
    pue: float | None = None
    intensity_g_per_kwh: float | None = None
    region: str | None = None
    source: str | None = None
    reason: str | None = None


class Gpu(_Strict):
    uuid: str
    name: str | None = None
    memory_bytes: int | None = None
    power_limit_w: float | None = None
    driver: str | None = None


class Hardware(_Strict):
    host: str
    cpu: str | None = None
    cores: int | None = None
    ram_bytes: int | None = None
    gpus: list[Gpu] = Field(default_factory=list)


class Software(_Strict):
    python: str
    packages: dict[str, str] = Field(default_factory=dict)
    git_commit: str | None = None
    git_dirty: bool | None = None
    code_digest: str | None = None


class Sidecar(_Strict):
    """The whole record of one stage's artifact."""

    schema_version: int = SCHEMA_VERSION
    stage: Part
    name: Part
    version: Part
    recipe: int
    params: dict[str, Any]
    labels: dict[str, Any] = Field(default_factory=dict)  # teacher, student, pipeline, dataset, hyperparameters, …
    consumes: list[Consumed] = Field(default_factory=list)
    produces: list[Produced] = Field(default_factory=list)
    attempts: list[Attempt]
    energy: Energy
    quality: Quality
    tokens: Tokens = Field(default_factory=Tokens)
    j_per_token: PerToken = Field(default_factory=lambda: PerToken(reason="the stage counts no tokens"))
    co2e: Co2e
    hardware: Hardware
    software: Software
    seed: int | None = None
    results: dict[str, Any] = Field(default_factory=dict)  # small scalars the stage reports
    created_utc: str

    @model_validator(mode="after")
    def _stage_known(self) -> "Sidecar":
        if self.stage not in STAGES:
            raise ValueError(f"stage {self.stage!r} is not one of {', '.join(STAGES)}")
        if not self.attempts:
            raise ValueError("a sidecar has at least one attempt")
        return self


def first_error(error: ValidationError) -> str:
    """The first problem of a pydantic error as ``key: message``."""
    item = error.errors()[0]
    where = ".".join(str(part) for part in item["loc"]) or "(whole)"
    return f"{where}: {item['msg']}"


def parse(text: str, origin: str) -> Sidecar:
    """Parse a sidecar. Raises UserError that names ``origin`` if it is truncated, foreign or dishonest."""
    try:
        record = Sidecar.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{origin}: {_foreign(text) or first_error(error)}") from None
    except RecursionError:
        raise UserError(f"{origin}: nested too deeply to be a sidecar") from None
    if record.schema_version != SCHEMA_VERSION:
        raise UserError(f"{origin}: {_foreign(text)}")
    return record


def _foreign(text: str) -> str | None:
    """Why a text is no sidecar of this schema at all, or None."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        return f"not a whole JSON document ({error.msg} at character {error.pos})"
    except (ValueError, RecursionError) as error:
        return f"not a JSON document that can be read ({error})"
    if not isinstance(data, dict):
        return f"a sidecar is a JSON object, found {type(data).__name__}"
    found = data.get("schema_version")
    return None if found == SCHEMA_VERSION else f"schema_version {found!r}, this version reads {SCHEMA_VERSION}"


def read(path: str | Path) -> Sidecar:
    """Read and validate one sidecar. Raises UserError naming the file."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason})") from None
    return parse(text, str(path))


def dump(sidecar: Sidecar) -> str:
    """The sidecar as JSON text, validated once more (assignments after construction included)."""
    checked = Sidecar.model_validate(sidecar.model_dump())
    return json.dumps(checked.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"


def explained(components: list[Component]) -> float | None:
    """Share of the node's joules that the sum of its parts explains; None without both. CodeCarbon's RAM is no part."""
    node = [c for c in components if c.component == "node"]
    flat = lambda c: c.component == "dram" and c.source == "estimated"  # noqa: E731
    parts = [c for c in components if c.component != "node" and (c.in_total or c.gross_j is not None) and not flat(c)]
    if not node or not parts or any(c.gross_j is None for c in [*node, *parts]):
        return None
    whole = math.fsum(c.gross_j for c in node)
    return math.fsum(c.gross_j for c in parts) / whole if whole > 0 else None


def total(components: list[Component]) -> tuple[float | None, float | None, Source, str | None]:
    """Sum the components that belong to the total: (gross_j, error_j, source, reason).

    One unknown component makes the sum null; one estimated component makes it ``estimated``. No component at all is
    ``unavailable``, never 0.
    """
    parts = [c for c in components if c.in_total]
    if not parts:
        return None, None, "unavailable", "no component of this host could be measured or estimated"
    missing = [c for c in parts if c.gross_j is None]
    if missing:
        names = ", ".join(f"{c.component} {c.device or ''}".strip() + f": {c.reason}" for c in missing)
        return None, None, "unavailable", names
    gross = math.fsum(c.gross_j for c in parts)
    errors = [c.error_j for c in parts]
    error = None if any(e is None for e in errors) else math.fsum(errors)
    source: Source = "estimated" if any(c.source == "estimated" for c in parts) else "measured"
    return gross, error, source, None


def wall_seconds(attempts: list[Attempt]) -> float | None:
    """Seconds in which at least one attempt ran; None if one's are unknown.

    The nodes of one training are attempts at the same time, by the nodes' clocks, and count once. Attempts on one node
    follow each other and are summed: a clock that was set back between them does not make them overlap.
    """
    if not attempts or any(a.wall_s is None for a in attempts):
        return None
    by_node: dict[str, float] = {}
    spans = []
    for a in attempts:
        node = a.slurm_node or a.host
        by_node[node] = math.fsum([by_node.get(node, 0.0), a.wall_s])
        start = dt.datetime.fromisoformat(a.start_utc).timestamp()
        spans.append((start, start + a.wall_s))
    if len(by_node) == 1:
        return math.fsum(a.wall_s for a in attempts)
    together, end = 0.0, -math.inf
    for start, stop in sorted(spans):
        together += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return max(together, *by_node.values())
