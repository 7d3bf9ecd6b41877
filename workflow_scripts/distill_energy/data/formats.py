"""Rows of public data sets as conversations. A format says how a row becomes messages, and what identifies it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .chat import Conversation, usable
from .hashing import digest

Row = dict[str, Any]
Messages = list[dict[str, str]]


def _messages(row: Row) -> Messages | None:
    found = row.get("messages")
    if found is None or not all(isinstance(message, dict) for message in found):
        return None
    return [{"role": message.get("role"), "content": message.get("content")} for message in found]


def _pair(prompt: Any, response: Any) -> Messages | None:
    if not isinstance(prompt, str) or not isinstance(response, str):
        return None
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _openr1_math(row: Row) -> Messages | None:
    """The row's ``messages``; else the problem with its first generation that is complete and verified as correct."""
    if row.get("messages"):
        return _messages(row)
    generations = row.get("generations") or []
    verified = row.get("correctness_math_verify") or [None] * len(generations)
    complete = row.get("is_reasoning_complete") or [True] * len(generations)
    for text, right, whole in zip(generations, verified, complete, strict=False):
        if right and whole:
            return _pair(row.get("problem"), text)
    return _pair(row.get("problem"), row.get("solution"))


def _codeforces_cots(row: Row) -> Messages | None:
    """The row's ``messages``; else its prompt and generation. Generations cut by their length limit are left out."""
    if row.get("finish_reason") == "length":
        return None
    return _messages(row) if row.get("messages") else _pair(row.get("prompt"), row.get("generation"))


def _prompt_response(row: Row) -> Messages | None:
    for prompt, response in (("prompt", "response"), ("instruction", "output"), ("question", "answer")):
        if prompt in row and response in row:
            return _pair(row[prompt], row[response])
    return None


FORMATS: dict[str, Callable[[Row], Messages | None]] = {
    "tulu3": _messages,
    "messages": _messages,
    "openr1_math": _openr1_math,
    "codeforces_cots": _codeforces_cots,
    "prompt_response": _prompt_response,
}
#: What identifies a row, where it is there. Ids need not be unique: a hash of the content is added.
KEYS = ("id", "uuid", "key")


def conversation(row: Row, format_name: str) -> Conversation | None:
    """The row as a conversation, None if it has no usable messages.

    Its id is the row's own id, if any, and a hash of the content: rows without ids work, and several answers to one
    problem under one id stay apart.
    """
    messages = FORMATS[format_name](row)
    if not messages or not usable(messages):
        return None
    while messages[-1]["role"] != "assistant":
        messages.pop()
    content = digest(*(part for message in messages for part in (message["role"], message["content"])))[:16]
    own = next((str(row[key]) for key in KEYS if row.get(key) not in (None, "")), None)
    return Conversation(f"{own}-{content}" if own else content, tuple(messages))
