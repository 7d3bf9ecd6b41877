"""Rows of public data sets as conversations. A format says how a row becomes messages, and what identifies it.

Nothing is left out without a word: a field that means something is carried on by a rule written here, or its row is
refused with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from .chat import ROLES, Conversation
from .hashing import digest

Row = Mapping[str, Any]
Messages = list[dict[str, Any]]


class Refused(Exception):
    """A row that cannot be used as it is; the argument is the reason, the same words for the same kind of fault."""


class Filtered(Exception):
    """A row that its format leaves out on purpose (a generation cut by its limit, a weight of 0)."""


#: What other data sets call a role.
SAME_ROLE = {"developer": "system", "human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
SAME_ROLE |= {"chatgpt": "assistant", "function": "tool", "observation": "tool"}
#: Fields that mean something and that no rule here carries on.
UNSUPPORTED = ("tools", "functions", "images", "image", "audio", "audios", "video", "videos")
#: What a message may carry beside its text; the template must render it, or the row is refused there.
THOUGHTS = ("reasoning_content", "thinking")


def _text(value: Any, what: str) -> str:
    """A text as it is; a number as it is written; null, lists, dates and the rest are refused."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    if value is None:
        raise Refused(f"{what} is null")
    raise Refused(f"{what} is neither text nor number but {type(value).__name__}")


def _content(value: Any) -> str:
    """A message's text; of content parts, the texts joined (``{"type": "text", "text": …}``)."""
    if not isinstance(value, list):
        return _text(value, "content")
    parts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") not in ("text", None):
            raise Refused("content has a part that is not text")
        parts.append(_text(part.get("text"), "a content part"))
    return "".join(parts)


def _role(value: Any) -> str:
    if not isinstance(value, str):
        raise Refused("a message has no role")
    role = value.strip().lower()
    role = SAME_ROLE.get(role, role)
    if role not in ROLES:
        raise Refused(f"role {value!r} is not one of {', '.join(ROLES)}")
    return role


def _weight(value: Any) -> int:
    if value in (None, 1):
        return 1
    if value == 0:
        return 0
    raise Refused("a weight that is neither 0 nor 1")


def _message(message: Any, role: str = "role", content: str = "content") -> dict[str, Any]:
    if not isinstance(message, dict):
        raise Refused("messages holds something that is not a message")
    made: dict[str, Any] = {"role": _role(message.get(role))}
    if message.get("tool_calls") or message.get("function_call"):
        raise Refused("a message calls a tool")
    made["content"] = _content(message.get(content))
    for key in THOUGHTS:
        if message.get(key):
            made["reasoning_content"] = _text(message[key], key)
    if _weight(message.get("weight")) == 0:
        made["weight"] = 0  # read, and no label
    return made


def _listed(row: Row, field: str) -> list[Any]:
    found = row.get(field)
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            raise Refused(f"{field} is a text that is not JSON") from None
    if found is None:
        others = [name for name in ("messages", "conversations", "chosen", "prompt", "instruction") if row.get(name)]
        raise Refused(f"no {field}" + (f" (the row has {', '.join(others)}: another format?)" if others else ""))
    if not isinstance(found, list):
        raise Refused(f"{field} is no list")
    return found


def _messages(row: Row) -> Messages:
    return [_message(message) for message in _listed(row, "messages")]


def _sharegpt(row: Row) -> Messages:
    """``conversations`` of ``from`` and ``value``."""
    return [_message(message, "from", "value") for message in _listed(row, "conversations")]


def _preference(row: Row) -> Messages:
    """The chosen answer of a pair: ``prompt`` and ``chosen``, each a text or messages. The rejected one is not used."""
    chosen = row.get("chosen")
    if isinstance(chosen, list):
        messages = [_message(message) for message in chosen]
        prompt = row.get("prompt")
        if len(messages) > 1 or prompt is None:
            return messages
        before = [_message(m) for m in prompt] if isinstance(prompt, list) else [_user(prompt, "prompt")]
        return [*before, *messages]
    prompt = row.get("prompt")
    before = [_message(m) for m in prompt] if isinstance(prompt, list) else [_user(prompt, "prompt")]
    return [*before, _assistant(chosen, "chosen")]


def _user(text: Any, what: str) -> dict[str, str]:
    return {"role": "user", "content": _text(text, what)}


def _assistant(text: Any, what: str) -> dict[str, str]:
    return {"role": "assistant", "content": _text(text, what)}


def _pair(row: Row, prompt: str, response: str) -> Messages:
    return [_user(row.get(prompt), prompt), _assistant(row.get(response), response)]


def _openr1_math(row: Row) -> Messages:
    """The row's ``messages``; else the problem with its first generation that is complete and verified as correct."""
    if row.get("messages"):
        return _messages(row)
    generations = row.get("generations") or []
    verified = row.get("correctness_math_verify") or [None] * len(generations)
    complete = row.get("is_reasoning_complete") or [True] * len(generations)
    for text, right, whole in zip(generations, verified, complete, strict=False):
        if right and whole:
            return [_user(row.get("problem"), "problem"), _assistant(text, "generations")]
    return _pair(row, "problem", "solution")


def _codeforces_cots(row: Row) -> Messages:
    """The row's ``messages``; else its prompt and generation. Generations cut by their length limit are left out."""
    if row.get("finish_reason") == "length":
        raise Filtered("generation cut by its length limit")
    return _messages(row) if row.get("messages") else _pair(row, "prompt", "generation")


def _prompt_response(row: Row) -> Messages:
    """A prompt and its answer. Alpaca's ``input`` and Dolly's ``context`` follow the prompt after an empty line."""
    for prompt, response in (("prompt", "response"), ("instruction", "output"), ("question", "answer"),
                             ("instruction", "response"), ("prompt", "completion")):  # fmt: skip
        if prompt in row and response in row:
            messages = _pair(row, prompt, response)
            for extra in ("input", "context"):
                if row.get(extra) not in (None, ""):
                    messages[0]["content"] += f"\n\n{_text(row[extra], extra)}"
            return messages
    others = [name for name in ("messages", "conversations", "chosen") if row.get(name)]
    raise Refused("no prompt and response" + (f" (the row has {', '.join(others)}: another format?)" if others else ""))


FORMATS: dict[str, Callable[[Row], Messages]] = {
    "tulu3": _messages,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "preference": _preference,
    "openr1_math": _openr1_math,
    "codeforces_cots": _codeforces_cots,
    "prompt_response": _prompt_response,
}
#: What identifies a row, where it is there. Ids need not be unique: a hash of the content is added.
KEYS = ("id", "uuid", "key")


def read(row: Row, format_name: str) -> Conversation:
    """The row as a conversation. Raises Refused or Filtered with the reason.

    Its id is the row's own id, if any, and a hash of the content: rows without ids work, and several answers to one
    problem under one id stay apart. A ``system`` column comes first; turns after the last answer are left out, since no
    label depends on them.
    """
    if row.get("weight") is not None and _weight(row["weight"]) == 0:
        raise Filtered("weight 0")
    for field in UNSUPPORTED:
        if row.get(field) not in (None, "", [], {}, "[]", "{}"):
            raise Refused(f"{field} is not supported")
    messages = FORMATS[format_name](row)
    for field in ("system", "system_prompt"):
        if row.get(field) not in (None, "") and not any(m["role"] == "system" for m in messages):
            messages.insert(0, {"role": "system", "content": _text(row[field], field)})
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise Refused("no answer of an assistant")
    if "user" not in roles[: roles.index("assistant")]:
        raise Refused("the assistant speaks before the user")
    if any(m["role"] == "assistant" and not m["content"].strip() for m in messages):
        raise Refused("an answer is empty")
    while messages[-1]["role"] != "assistant":
        messages.pop()
    if not any(m["role"] == "assistant" and m.get("weight") != 0 for m in messages):
        raise Filtered("weight 0")
    parts = [part for m in messages for part in (m["role"], m["content"], *_further(m))]
    content = digest(*parts)[:16]
    own = next((str(row[key]) for key in KEYS if row.get(key) not in (None, "")), None)
    return Conversation(f"{own}-{content}" if own else content, tuple(messages))


def _further(message: Mapping[str, Any]) -> list[str]:
    return [f"{key}={message[key]}" for key in ("reasoning_content", "weight") if key in message]


def conversation(row: Row, format_name: str) -> Conversation | None:
    """As ``read``, None for a row that is refused or filtered."""
    try:
        return read(row, format_name)
    except (Refused, Filtered):
        return None
