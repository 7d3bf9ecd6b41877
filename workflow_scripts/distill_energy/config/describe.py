"""``python -m distill_energy.config.describe``: every configuration key as a Markdown page (docs/configuration.md)."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from .schema import Config

HEAD = """# Configuration

Every key of `config.yaml`, from the schema that validates it (`python -m distill_energy.config.describe` prints this
page). An unknown key or a wrong value stops the run before any job, in one line that names it. A configuration given
with `--configfile` stands alone; it is not merged into `config.yaml`.

An optional key whose default is `null` does not enter an artifact's version until it is set.
"""


def json_schema() -> dict[str, Any]:
    """JSON schema of ``config.yaml`` (configs/schema.json), with which editors complete and check it."""
    schema = Config.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "distill-energy configuration",
    }


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The section classes inside a type, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for part in typing.get_args(annotation):
        found += [s for s in sections(part) if s not in found]
    return found


def type_name(annotation: Any) -> str:
    """A type as a user would say it."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is typing.Literal:
        return " \\| ".join(f"`{arg}`" for arg in args)
    if origin is typing.Annotated:
        return type_name(args[0])
    if origin in (typing.Union, types.UnionType):
        return " \\| ".join(type_name(arg) for arg in args)
    if origin is tuple:
        return f"list of {type_name(args[0])}"
    if origin is dict:
        return f"name → {type_name(args[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true \\| false"}.get(
        getattr(annotation, "__name__", ""), "any"
    )


def limits(info: FieldInfo) -> str:
    """Numeric limits of a field."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return ", ".join(
        f"{signs[key]} {getattr(item, key)}"
        for item in info.metadata
        for key in signs
        if getattr(item, key, None) is not None
    )


def default(info: FieldInfo) -> str:
    if info.is_required():
        return "**required**"
    if info.default is PydanticUndefined:
        return "its defaults"
    return "null" if info.default is None else f"`{info.default}`"


def table(section: type[BaseModel]) -> str:
    """One section as a heading, its docstring and a table of keys."""
    lines = [f"## {section.__name__}", "", (section.__doc__ or "").strip(), ""]
    lines += ["| key | type | default | limits | |", "| --- | --- | --- | --- | --- |"]
    for name, info in section.model_fields.items():
        cells = [f"`{name}`", type_name(info.annotation), default(info), limits(info), info.description or ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page: sections in the order in which they are first met."""
    queue, seen = [Config], []
    while queue:
        section = queue.pop(0)
        if section in seen:
            continue
        seen.append(section)
        queue += [s for info in section.model_fields.values() for s in sections(info.annotation)]
    return HEAD + "\n" + "\n".join(table(section) for section in seen)


if __name__ == "__main__":
    print(page(), end="")
