"""Reading ``config.yaml``: one clear line for what is wrong, before any job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import UserError
from .schema import Config


def _problem(error: ValidationError) -> str:
    item = error.errors()[0]
    where = ".".join(str(part) for part in item["loc"] if not str(part).startswith("function-"))
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = "unknown key"
    given = item.get("input")
    shown = (
        f" (found {given!r})" if isinstance(given, str | int | float | bool) and item["type"] != "value_error" else ""
    )
    return f"{where + ': ' if where else ''}{message}{shown}"


def allowed_keys(error: ValidationError) -> str:
    """The keys allowed where an unknown key was found, for the error's line."""
    item = error.errors()[0]
    if item["type"] != "extra_forbidden":
        return ""
    import types
    import typing

    from pydantic import BaseModel

    def models_in(annotation: Any) -> list[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, dict, tuple):
            return [m for a in typing.get_args(annotation) for m in models_in(a)]
        return []

    current: list[type[BaseModel]] = [Config]
    for part in item["loc"][:-1]:
        step = [m for c in current if part in c.model_fields for m in models_in(c.model_fields[part].annotation)]
        tagged = [c for c in current for f in c.model_fields.values() if part in typing.get_args(f.annotation)]
        current = step or tagged or current
    keys = sorted({key for model in current for key in model.model_fields})
    return f"; allowed: {', '.join(keys)}" if keys else ""


def parse_config(data: Any, origin: str = "config.yaml") -> Config:
    """Validate a configuration mapping. Raises UserError with one line naming the key and what is allowed."""
    if not isinstance(data, dict):
        raise UserError(f"{origin}: expected keys and values, found {type(data).__name__}")
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{origin}: {_problem(error)}{allowed_keys(error)}") from None


def load_config(path: str | Path) -> Config:
    """Read and validate a YAML configuration file."""
    import yaml

    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({error})") from None
    return parse_config(data, str(path))
