"""Chat templates: what is told to one so that two renderings agree, on any day and with any mode of thinking."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from ..errors import UserError

#: The date that templates which name today's get instead: one text on every day. It is Llama 3's own default.
FROZEN = dt.date(2024, 7, 26)
_NOW = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
_PROBE = [{"role": "user", "content": "One two"}, {"role": "assistant", "content": "three four"}]


def freeze_date(template: str) -> str:
    """``template`` with ``FROZEN`` in the place of today. Raises UserError if it asks for the time in another way."""
    frozen = _NOW.sub(lambda found: repr(FROZEN.strftime(found.group(2))), template)
    if re.search(r"strftime_now\s*\(", frozen):
        raise UserError("chat template: its date cannot be frozen (strftime_now is called without a literal format)")
    return frozen


def freeze(tokenizer) -> None:
    """Freeze the date of a tokenizer's template; the template as it came is kept (``original_template``)."""
    if names_today(tokenizer.chat_template):
        tokenizer.distill_energy_template = tokenizer.chat_template
        tokenizer.chat_template = freeze_date(tokenizer.chat_template)


def original_template(tokenizer) -> str | None:
    """The chat template before its date was frozen."""
    return getattr(tokenizer, "distill_energy_template", tokenizer.chat_template)


def names_today(template: str | None) -> bool:
    """Whether a template asks what day it is."""
    return bool(template) and "strftime_now(" in template


def render(tokenizer, messages: Sequence[Mapping[str, Any]], prompt: bool, told: Mapping[str, Any]) -> str:
    """The conversation as text, with the generation prompt after it if ``prompt``. Raises UserError if it refuses."""
    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=prompt, **told
        )
    except (jinja2.TemplateError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"chat template: {error}") from None


def told(tokenizer) -> dict[str, Any]:
    """Arguments for the template, so that an answer follows the generation prompt directly.

    Templates of models that can think (Qwen3) write an empty think block before an answer without thoughts. Told
    ``enable_thinking=False``, the generation prompt supplies it: it is no label then, and a student is asked as it was
    trained.
    """
    if "enable_thinking" not in (tokenizer.chat_template or ""):
        return {}
    off = {"enable_thinking": False}
    if not _follows(tokenizer, {}) and _follows(tokenizer, off):
        return off
    return {}


def _follows(tokenizer, arguments: dict[str, Any]) -> bool:
    before = render(tokenizer, _PROBE[:1], True, arguments)
    after = render(tokenizer, _PROBE, False, arguments)
    return after.startswith(before + _PROBE[1]["content"])
