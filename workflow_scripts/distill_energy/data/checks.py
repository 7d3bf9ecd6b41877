"""Checkers of verifiable instructions: a specification and a response give 0 or 1."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..errors import UserError

WORD = re.compile(r"[A-Za-z0-9']+")


def words(text: str) -> list[str]:
    """Words of a text: runs of letters, digits and apostrophes."""
    return WORD.findall(text)


NUMBER = r"-?\d[\d,]*(?:\.\d+)?"


def _plain(number: str) -> str:
    number = number.replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


def last_number(text: str) -> str | None:
    """The last integer or decimal of a text, without thousands separators and trailing zeros; None if none."""
    found = re.findall(NUMBER, text)
    return _plain(found[-1]) if found else None


def stated_number(text: str) -> str | None:
    """The number that the first line states: after its last ``=``, ``is`` or ``equals``, else its last number.

    Small models go on talking after the answer, so that the last number of the whole text is often another one.
    """
    line = next((line for line in text.splitlines() if line.strip()), "")
    stated = re.findall(rf"(?:=|\bis\b|\bequals\b|\bequal to\b):?\s*\$?({NUMBER})", line)
    return _plain(stated[-1]) if stated else last_number(line)


def _items(text: str) -> list[str]:
    return [part.strip(" .") for part in re.split(r",|\band\b|\n", text) if part.strip(" .")]


CHECKS: dict[str, Callable[[str, dict[str, Any]], bool]] = {
    "exact": lambda t, a: t.strip().strip('."').casefold() == a["text"].casefold(),
    "uppercase": lambda t, a: t.upper() == t and any(c.isalpha() for c in t),
    "lowercase": lambda t, a: t.lower() == t and any(c.isalpha() for c in t),
    "ends_with": lambda t, a: t.rstrip().endswith(a["text"]),
    "starts_with": lambda t, a: t.lstrip().startswith(a["text"]),
    "contains": lambda t, a: a["text"].casefold() in t.casefold(),
    "excludes": lambda t, a: a["text"].casefold() not in [word.casefold() for word in words(t)],
    "max_words": lambda t, a: 0 < len(words(t)) <= a["n"],
    "n_words": lambda t, a: len(words(t)) == a["n"],
    "n_lines": lambda t, a: len([line for line in t.splitlines() if line.strip()]) == a["n"],
    "n_items": lambda t, a: len(_items(t)) == a["n"],
    "quoted": lambda t, a: len(t.strip()) > 2 and t.strip().startswith('"') and t.strip().endswith('"'),
    "bullets": lambda t, a: len([x for x in t.splitlines() if x.startswith(("- ", "* "))]) == a["n"],
    "number": lambda t, a: stated_number(t) == a["text"],
}


def check(spec: dict[str, Any], response: str) -> float:
    """1.0 if the response meets the specification ``{"check": name, …}``, else 0.0; an empty response is 0.0.

    ``{"check": "all", "of": [spec, …]}`` gives the share of its parts that are met.
    """
    if spec["check"] == "all":
        return sum(check(part, response) for part in spec["of"]) / len(spec["of"])
    if spec["check"] not in CHECKS:
        raise UserError(f"check {spec['check']!r} is not one of all, {', '.join(CHECKS)}")
    return float(bool(response.strip()) and CHECKS[spec["check"]](response, spec))
