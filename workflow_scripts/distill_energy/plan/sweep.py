"""A pipeline's settings, expanded over its sweep."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ..config.schema import Config
from ..config.training import OPTIONS, Pipeline, Training
from ..errors import UserError


@dataclass(frozen=True)
class Setting:
    """One combination of a pipeline's hyperparameters."""

    pipeline: str
    kind: str
    alpha: float | None
    temperature: float | None
    max_new_tokens: int | None
    options: dict[str, Any]
    training: dict[str, Any]
    hyperparameters: dict[str, Any]  # what tells this combination from others, for people
    moved: dict[str, Any]  # swept values that differ from the pipeline's own

    @property
    def tag(self) -> str:
        """Readable part of a name: the pipeline and the values that differ from its own.

        So the combination that repeats the pipeline's own settings keeps its name, and its artifacts, under a sweep.
        """
        return self.pipeline + "".join(f"-{key}{_part(value)}" for key, value in self.moved.items())


def _part(value: Any) -> str:
    """A swept value as part of a name."""
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", str(value))


def settings(name: str, pipeline: Pipeline, config: Config) -> Iterator[Setting]:
    """Every combination of a pipeline's sweep, in the order of the configuration."""
    keys = list(pipeline.sweep)
    for values in itertools.product(*(pipeline.sweep[key] for key in keys)):
        chosen = dict(zip(keys, values, strict=True))
        base = config.training.model_dump()
        base.update(pipeline.training)
        base.update({key: value for key, value in chosen.items() if key in Training.model_fields})
        try:
            training = Training.model_validate(base).model_dump(mode="json")
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise UserError(f"{config.origin}: pipelines.{name}: {where}: {problem['msg']}") from None
        options = {key.removeprefix(OPTIONS): value for key, value in chosen.items() if key.startswith(OPTIONS)}
        own = {key: chosen.get(key, getattr(pipeline, key)) for key in ("alpha", "temperature", "max_new_tokens")}
        unswept = {**config.training.model_dump(), **pipeline.training, **{key: getattr(pipeline, key) for key in own}}
        unswept |= {f"{OPTIONS}{key}": value for key, value in pipeline.options.items()}
        shown = {key: value for key, value in own.items() if value is not None} | chosen
        shown = {key.removeprefix(OPTIONS): value for key, value in shown.items()}
        yield Setting(
            pipeline=name,
            kind=pipeline.kind,
            options={**pipeline.options, **options},
            training=training,
            hyperparameters=shown,
            moved={k.removeprefix(OPTIONS): v for k, v in chosen.items() if k not in unswept or v != unswept[k]},
            **own,
        )
