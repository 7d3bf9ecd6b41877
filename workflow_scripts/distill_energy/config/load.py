"""Reading ``config.yaml``: one clear line for what is wrong, before any job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import UserError
from .names import meant
from .schema import Config


def _first(error: ValidationError) -> Any:
    """The error to show: a key that is not known before one that lacks, since it may be that one mistyped."""
    found = error.errors()
    return next((item for item in found if item["type"] == "extra_forbidden"), found[0])


def _problem(error: ValidationError) -> str:
    item = _first(error)
    where = ".".join(str(part) for part in item["loc"] if not str(part).startswith("function-"))
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = "unknown key"
    if item["type"] == "union_tag_invalid":  # kind: or source: of a section
        key, tags = item["ctx"]["discriminator"].strip("'"), item["ctx"]["expected_tags"].replace("'", "").split(", ")
        given = item["ctx"]["tag"]
        return f"{where}.{key}: {given!r} is not one of {', '.join(tags)}{meant(given, tags)}"
    given = item.get("input")
    shown = (
        f" (found {given!r})" if isinstance(given, str | int | float | bool) and item["type"] != "value_error" else ""
    )
    return f"{where + ': ' if where else ''}{message}{shown}"


def allowed_keys(error: ValidationError) -> str:
    """The keys allowed where an unknown key was found, for the error's line."""
    item = _first(error)
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
    return f"{meant(item['loc'][-1], keys)}; allowed: {', '.join(keys)}" if keys else ""


#: Values that a configuration may hold, aliases counted as often as they stand.
MOST_VALUES = 200_000
#: Whole numbers above this are no count of anything here, and are not exact as JSON.
MOST = 2**53


def check_values(data: Any, origin: str) -> None:
    """Raise UserError naming the key of a value that YAML can hold and a configuration cannot."""
    todo: list[tuple[str, Any]] = [("", data)]
    seen = 0
    while todo:
        where, value = todo.pop()
        seen += 1
        if seen > MOST_VALUES:
            raise UserError(f"{origin}: more than {MOST_VALUES} values (aliases count as often as they are used)")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise UserError(f"{origin}: {where or 'top level'}: the key {key!r} is not a text")
            todo += [(f"{where}.{key}" if where else key, item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            todo += [(f"{where}.{number}", item) for number, item in enumerate(value)]
        elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > MOST:
            raise UserError(f"{origin}: {where}: a number beyond 2^53")
        elif isinstance(value, str) and "\0" in value:
            raise UserError(f"{origin}: {where}: holds a NUL character")
        elif not isinstance(value, str | int | float | bool | None):
            raise UserError(f"{origin}: {where}: a {type(value).__name__}; quote it to make it a text")


def parse_config(data: Any, origin: str = "config.yaml") -> Config:
    """Validate a configuration mapping. Raises UserError with one line naming the key and what is allowed."""
    if not isinstance(data, dict):
        raise UserError(f"{origin}: expected keys and values, found {type(data).__name__}")
    check_values(data, origin)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{origin}: {_problem(error)}{allowed_keys(error)}") from None
    config._origin = origin
    return config


def read_yaml(path: str | Path) -> Any:
    """A YAML file as data. Raises UserError for what YAML takes silently: a key given twice, 010 meaning 8."""
    import yaml

    class Strict(yaml.SafeLoader):
        """As the safe loader, without the two surprises."""

        def construct_mapping(self, node, deep=False):
            merge = "tag:yaml.org,2002:merge"
            keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merge]
            for key in keys:
                if keys.count(key) > 1:
                    raise UserError(f"{path}, line {node.start_mark.line + 1}: the key {key!r} is given twice")
            return super().construct_mapping(node, deep)

        def construct_yaml_int(self, node):
            if len(node.value.lstrip("+-")) > 1 and node.value.lstrip("+-")[0] == "0" and node.value.isdigit():
                line = node.start_mark.line + 1
                raise UserError(f"{path}, line {line}: {node.value} is octal in YAML; write it without the zero")
            return super().construct_yaml_int(node)

    Strict.add_constructor("tag:yaml.org,2002:int", Strict.construct_yaml_int)
    path = Path(path)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=Strict)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason})") from None
    except (yaml.YAMLError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None


def load_config(path: str | Path) -> Config:
    """Read and validate a YAML configuration file."""
    return parse_config(read_yaml(path), str(path))
