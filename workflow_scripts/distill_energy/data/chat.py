"""Conversations become token ids with labels on every assistant turn, and only there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import UserError

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """One example before tokenisation: a stable id and ``messages`` of {"role", "content"}."""

    id: str
    messages: tuple[dict[str, str], ...]

    @property
    def prompt(self) -> str:
        """The last user message before the first assistant turn."""
        before = self.messages[: first_assistant(self.messages)]
        return next((m["content"] for m in reversed(before) if m["role"] == "user"), "")

    @property
    def response(self) -> str:
        """The first assistant message."""
        return self.messages[first_assistant(self.messages)]["content"]


@dataclass(frozen=True)
class Encoded:
    """Token ids; ``loss_mask[t]`` is 1 where token t is a label; ``prompt_ids`` is what a generator is fed."""

    input_ids: list[int]
    loss_mask: list[int]
    prompt_ids: list[int]
    truncated: bool


def first_assistant(messages) -> int:
    """Index of the first assistant turn. Raises UserError if there is none."""
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            return index
    raise UserError("a conversation has no assistant turn")


def usable(messages) -> bool:
    """Whether the conversation starts with a user (or system) turn and has an assistant turn with text."""
    if not messages or any(m.get("role") not in ROLES or not isinstance(m.get("content"), str) for m in messages):
        return False
    roles = [m["role"] for m in messages]
    if "assistant" not in roles or "user" not in roles[: roles.index("assistant")]:
        return False
    return all(m["content"].strip() for m in messages if m["role"] == "assistant")


def _render(tokenizer, messages, prompt: bool) -> str:
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)


def segments(tokenizer, messages) -> list[tuple[str, bool]]:
    """The rendered conversation in pieces: (text, is a label).

    The template is rendered up to and including each assistant turn; the piece between the generation prompt and the
    end of that turn is the label, its end-of-turn token included and the white space after that token (which no model
    generates) excluded. Raises UserError if the template rewrites earlier turns, so that no prefix matches.
    """
    whole = _render(tokenizer, messages, prompt=False)
    pieces: list[tuple[str, bool]] = []
    done = 0
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:index], prompt=True)
        after = _render(tokenizer, messages[: index + 1], prompt=False)
        if not (whole.startswith(after) and after.startswith(before) and len(before) >= done):
            raise UserError(f"chat template: turn {index} is not rendered as a prefix of the whole conversation")
        bare = after.rstrip()
        ended = any(bare.endswith(token) for token in tokenizer.all_special_tokens)
        end = len(bare) if ended and len(bare) > len(before) else len(after)
        pieces += [(whole[done : len(before)], False), (whole[len(before) : end], True)]
        done = end
    return pieces


def encode(tokenizer, messages, max_length: int | None = None) -> Encoded | None:
    """Token ids and labels of one conversation, cut to ``max_length``; None if no label is left after the cut.

    Each piece is tokenised alone: a generator tokenises its prompt alone too, so ``prompt_ids`` is an exact prefix of
    ``input_ids``. What follows the last assistant turn is left out: no label depends on it.
    """
    ids: list[int] = []
    mask: list[int] = []
    prompt_ids: list[int] | None = None
    for text, label in segments(tokenizer, messages):
        piece = tokenizer.encode(text, add_special_tokens=False)
        if label and prompt_ids is None:
            prompt_ids = list(ids)
        ids += piece
        mask += [int(label)] * len(piece)
    truncated = max_length is not None and len(ids) > max_length
    if truncated:
        ids, mask = ids[:max_length], mask[:max_length]
    if not any(mask[1:]) or prompt_ids is None:
        return None
    return Encoded(ids, mask, prompt_ids, truncated)


def check_tokenizer(tokenizer) -> None:
    """Raise UserError if the tokenizer changes text at the start of a piece, so that pieces cannot be joined."""
    probe = [{"role": "user", "content": "One two"}, {"role": "assistant", "content": "three four"}]
    pieces = segments(tokenizer, probe)
    text = "".join(piece for piece, _ in pieces)
    ids: list[Any] = []
    for piece, _ in pieces:
        ids += tokenizer.encode(piece, add_special_tokens=False)
    if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text:
        raise UserError("tokenizer: pieces of a conversation do not decode to its text (not a byte-level tokenizer?)")
