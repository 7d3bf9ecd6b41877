"""The unit of work: one stage with its parameters, what it reads, its version and its folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from ..config.names import check_part
from ..errors import UserError

VERSION_LENGTH = 12


def canonical(value: Any) -> Any:
    """JSON value with null-valued keys left out and keys sorted.

    Leaving nulls out lets a later release add an optional field (default null) without changing old versions.
    Integral floats become integers, so that ``1`` and ``1.0`` in YAML are one parameter.
    """
    if isinstance(value, dict):
        return {str(key): canonical(value[key]) for key in sorted(value, key=str) if value[key] is not None}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def digest(value: Any, length: int = VERSION_LENGTH) -> str:
    """Short SHA-256 of a value's canonical JSON."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass(frozen=True)
class Input:
    """An artifact that a stage reads. ``hashed`` says whether it decides the reader's version."""

    role: str
    stage: str
    name: str
    version: str
    root: str
    hashed: bool = True

    @property
    def folder(self) -> str:
        return f"{self.root}/{self.stage}/{self.name}/{self.version}"


@dataclass(frozen=True)
class StageSpec:
    """One measured stage, fully resolved."""

    stage: str
    name: str
    version: str
    recipe: int
    params: dict[str, Any]
    consumes: tuple[Input, ...] = ()
    labels: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    root: str = "results"
    energy: dict[str, Any] = field(default_factory=dict)  # how to measure; never part of the version
    store: str | None = None  # URL of the teacher store whose mirror is among the roots, if it is on object storage
    runs: dict[str, Any] = field(default_factory=dict)  # on how many processes; never part of the version
    receipts: str | None = None  # where the workflow keeps its copies of the sidecars of a root that it shares

    @property
    def key(self) -> tuple[str, str, str]:
        return self.stage, self.name, self.version

    @property
    def folder(self) -> str:
        return f"{self.root}/{self.stage}/{self.name}/{self.version}"

    @property
    def attempts(self) -> str:
        return f"{self.root}/attempts/{self.stage}/{self.name}/{self.version}"

    @property
    def sidecar(self) -> str:
        """What Snakemake takes for the artifact, and removes before it makes one: never a file that others read."""
        return f"{self.receipts or self.root}/{self.stage}/{self.name}/{self.version}/energy.json"

    def as_input(self, role: str, hashed: bool = True) -> Input:
        """This artifact as something another stage reads."""
        return Input(role, self.stage, self.name, self.version, self.root, hashed)

    def to_json(self) -> dict[str, Any]:
        """A plain mapping, as handed to a job."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "StageSpec":
        data = dict(data)
        data["consumes"] = tuple(Input(**item) for item in data.get("consumes", ()))
        return cls(**data)


def make_spec(
    stage: str,
    name: str,
    recipe: int,
    params: dict[str, Any],
    consumes: tuple[Input, ...] = (),
    **rest: Any,
) -> StageSpec:
    """Build a spec; its version hashes the parameters, the recipe and the versions of what it reads.

    Raises UserError where the name cannot be a folder's.
    """
    try:
        check_part(name)
    except ValueError as error:
        raise UserError(f"{stage}: {error}; shorten the names of data set, pipeline or model") from None
    identity = {
        "stage": stage,
        "recipe": recipe,
        "params": params,
        "consumes": sorted([i.role, i.stage, i.version] for i in consumes if i.hashed),
    }
    return StageSpec(stage, name, digest(identity), recipe, params, consumes, **rest)
