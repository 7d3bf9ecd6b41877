"""Conversations become token ids with labels on every assistant turn, and only there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..models.template import render, told

ROLES = ("system", "user", "assistant", "tool")
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """One example before tokenisation: a stable id and ``messages`` of {"role", "content"}.

    A message may carry ``reasoning_content`` (thoughts, which the template must render) and ``weight`` 0 (no label).
    """

    id: str
    messages: tuple[dict[str, Any], ...]

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


class Rewritten(UserError):
    """The template renders a turn otherwise once another follows it."""


def first_assistant(messages: Sequence[Message]) -> int:
    """Index of the first assistant turn. Raises UserError if there is none."""
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            return index
    raise UserError("a conversation has no assistant turn")


def accepted(tokenizer, messages: Sequence[Message]) -> tuple[list[Message], bool]:
    """(messages that the template renders, whether the system's was merged into the first user turn).

    A template without a system role raises, or leaves the text out; the text then precedes the user's, after an empty
    line. Raises UserError with the template's words if it refuses the conversation all the same.
    """
    messages = list(messages)
    if not messages or messages[0]["role"] != "system":
        return messages, False
    system = messages[0]["content"].strip()
    try:
        if system in render(tokenizer, messages, False, told(tokenizer)):
            return messages, False
    except UserError:
        pass
    if len(messages) < 2 or messages[1]["role"] != "user":
        raise UserError("chat template: has no system role, and no user turn follows the system's")
    first = {**messages[1], "content": f"{system}\n\n{messages[1]['content']}" if system else messages[1]["content"]}
    return [first, *messages[2:]], True


def _arguments(tokenizer, messages: Sequence[Message]) -> dict[str, Any]:
    """What the template is told: with thoughts to render, its own mode of thinking."""
    return {} if any(m.get("reasoning_content") for m in messages) else told(tokenizer)


def _turn(tokenizer, messages: Sequence[Message], index: int, arguments: dict, stops: Collection[int]) -> tuple:
    """(text before turn ``index`` with the generation prompt, text to its end, where its label ends)."""
    before = render(tokenizer, messages[:index], True, arguments)
    after = render(tokenizer, messages[: index + 1], False, arguments)
    if not after.startswith(before):
        raise Rewritten(f"chat template: turn {index} does not follow its generation prompt")
    thought = messages[index].get("reasoning_content")
    if thought and thought.strip() not in after[len(before) :]:
        raise UserError("chat template: does not render reasoning_content")
    label = after[len(before) :]
    end = _end(tokenizer, label, messages[index]["content"], stops)
    if end is None:
        # Where the next turn's first token is what stops the model (GLM), the label ends with it.
        asked = [*messages[: index + 1], {"role": "user", "content": "One"}]
        longer = render(tokenizer, asked, False, arguments)
        tail = longer[len(before) :] if longer.startswith(after) else ""
        end = _end(tokenizer, tail, messages[index]["content"], stops, len(label))
        if end is None:
            raise UserError(
                "chat template: an answer ends with no token that ends generation (the tokenizer's end-of-sequence "
                "token, or those of generation_config.json)"
            )
        after = longer
    return before, after, len(before) + end


def _end(tokenizer, label: str, content: str, stops: Collection[int], reach: int | None = None) -> int | None:
    """Where in ``label`` the first token after ``content`` ends that stops generation; None if there is none.

    ``reach``: it must begin there at the latest.
    """
    tail = content.strip()[-40:]
    at = label.rfind(tail) + len(tail) if tail in label else 0
    found = []
    for token, text in tokenizer.added_tokens_decoder.items():
        if token in stops and (place := label.find(text.content, at)) >= 0 and (reach is None or place <= reach):
            found.append(place + len(text.content))
    return min(found, default=None)


def _stops(tokenizer, stops: Collection[int] | None) -> Collection[int]:
    return stops if stops is not None else [tokenizer.eos_token_id]


def segments(tokenizer, messages: Sequence[Message], stops: Collection[int] | None = None) -> list[tuple[str, bool]]:
    """The rendered conversation in pieces: (text, is a label).

    The template is rendered up to and including each assistant turn; the piece between the generation prompt and the
    token that ends generation (one of ``stops``, default the tokenizer's end-of-sequence token) is the label, with that
    token. Raises Rewritten if the template rewrites earlier turns, so that no prefix matches, and UserError if
    nothing ends an answer.
    """
    stops, arguments = _stops(tokenizer, stops), _arguments(tokenizer, messages)
    whole = render(tokenizer, messages, False, arguments)
    pieces: list[tuple[str, bool]] = []
    done = 0
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after, end = _turn(tokenizer, messages, index, arguments, stops)
        if len(before) < done or (index < last and not whole.startswith(after[:end])):
            raise Rewritten(f"chat template: turn {index} is not rendered as a prefix of the whole conversation")
        pieces += [(after[done : len(before)], False), (after[len(before) : end], message.get("weight") != 0)]
        done = end
    return pieces


def _joined(tokenizer, pieces: Sequence[tuple[str, bool]], max_length: int | None) -> Encoded | None:
    """Each piece tokenised alone: a generator tokenises its prompt alone too, so ``prompt_ids`` is an exact prefix of
    ``input_ids``. None if no label is left after the cut."""
    ids: list[int] = []
    mask: list[int] = []
    prompt_ids: list[int] | None = None
    for text, label in pieces:
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


def encode(
    tokenizer, messages: Sequence[Message], max_length: int | None = None, stops: Collection[int] | None = None
) -> Encoded | None:
    """Token ids and labels of one conversation, cut to ``max_length``; None if no label is left after the cut.

    What follows the last assistant turn is left out: no label depends on it.
    """
    return _joined(tokenizer, segments(tokenizer, messages, stops), max_length)


def encode_turns(
    tokenizer, messages: Sequence[Message], max_length: int | None = None, stops: Collection[int] | None = None
) -> list[Encoded]:
    """As ``encode``, but where the template rewrites earlier turns (it drops their thoughts, say) an example a turn:
    the conversation up to it, its label on that turn alone. Those without a label after the cut are left out."""
    try:
        found = [encode(tokenizer, messages, max_length, stops)]
    except Rewritten:
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if len(answers) < 2:
            raise
        found = []
        for index in answers:
            if messages[index].get("weight") == 0:
                continue
            until = messages[: index + 1]
            before, after, end = _turn(tokenizer, until, index, _arguments(tokenizer, until), _stops(tokenizer, stops))
            found.append(_joined(tokenizer, [(before, False), (after[len(before) : end], True)], max_length))
    return [encoded for encoded in found if encoded is not None]


def check_tokenizer(tokenizer, stops: Collection[int] | None = None) -> None:
    """Raise UserError if the tokenizer changes text at the start of a piece, so that pieces cannot be joined, or if
    its template cannot render a question and its answer."""
    probe = [{"role": "user", "content": "One two"}, {"role": "assistant", "content": "three four"}]
    pieces = segments(tokenizer, probe, stops)
    text = "".join(piece for piece, _ in pieces)
    ids: list[Any] = []
    for piece, _ in pieces:
        ids += tokenizer.encode(piece, add_special_tokens=False)
    if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text:
        raise UserError("tokenizer: pieces of a conversation do not decode to its text (not a byte-level tokenizer?)")
