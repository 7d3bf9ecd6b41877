"""The instruction set that the project makes itself: offline, seeded, deduplicated.

Four families, many templates each. Training and validation draw from the training templates and are kept apart by the
hash of the prompt; evaluation items come from templates (and, for multiple choice, facts) that training never sees.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from ..errors import UserError
from .chat import Conversation
from .families import arithmetic, choice, instructions, text
from .families.item import Item, Template
from .hashing import digest, normalised, unit

FAMILIES = {"arithmetic": arithmetic, "text": text, "choice": choice, "instructions": instructions}
VALIDATION_SHARE = 0.15  # of the prompt space
EVALUATIONS = ("gold", *FAMILIES)
#: Draws in a row without a new item after which a template counts as used up.
PATIENCE = 200


def _families(names: tuple[str, ...] | list[str] | None) -> list[str]:
    chosen = list(names or FAMILIES)
    for name in chosen:
        if name not in FAMILIES:
            raise UserError(f"family {name!r} is not one of {', '.join(FAMILIES)}")
    return chosen


def _draws(
    groups: list[tuple[str, tuple[Template, ...]]], purpose: str, seed: int, keep: Callable[[str], bool]
) -> Iterator[tuple[str, Item]]:
    """Endless (family, item): families in turn, then their templates in turn; no prompt twice; ends when used up."""
    seen: set[str] = set()

    def fresh(template: Template, rng: Random) -> Item | None:
        for _ in range(PATIENCE):
            item = template(rng)
            key = normalised(item.prompt) if item else None
            if key is not None and key not in seen and keep(key):
                seen.add(key)
                return item
        return None

    turns = [
        (family, deque((template, Random(digest(purpose, seed, family, i))) for i, template in enumerate(templates)))
        for family, templates in groups
    ]
    while any(queue for _, queue in turns):
        for family, queue in turns:
            item = None
            while queue and item is None:
                item = fresh(*queue[0])
                if item is None:
                    queue.popleft()
            if item is not None:
                queue.rotate(-1)
                yield family, item


def _take(draws: Iterator[tuple[str, Item]], n: int, what: str) -> list[tuple[str, Item]]:
    taken = []
    for drawn in draws:
        taken.append(drawn)
        if len(taken) == n:
            return taken
    raise UserError(f"generated data: {n} {what} items asked, only {len(taken)} different ones exist")


def _conversation(family: str, item: Item) -> Conversation:
    messages = ({"role": "user", "content": item.prompt}, {"role": "assistant", "content": item.response})
    return Conversation(f"{family}-{digest(normalised(item.prompt))[:16]}", messages)


def in_validation(key: str) -> bool:
    """Whether a (normalised) prompt of the training templates belongs to validation."""
    return unit("validation", key) < VALIDATION_SHARE


def _stream(seed: int, families, validation: bool) -> Iterator[Conversation]:
    groups = [(name, FAMILIES[name].TRAIN) for name in _families(families)]
    for family, item in _draws(groups, "train", seed, lambda key: in_validation(key) == validation):
        yield _conversation(family, item)


def train_stream(seed: int, families=None) -> Iterator[Conversation]:
    """Training conversations, until the templates are used up."""
    return _stream(seed, families, validation=False)


def validation_stream(seed: int, families=None) -> Iterator[Conversation]:
    """Validation conversations: the same templates, other prompts."""
    return _stream(seed, families, validation=True)


def generate_train(n: int, seed: int = 0, families=None) -> list[Conversation]:
    """``n`` training conversations, families in equal shares. Raises UserError if so many do not exist."""
    return _conversations(train_stream(seed, families), n, "training")


def generate_validation(n: int, seed: int = 0, families=None) -> list[Conversation]:
    """``n`` validation conversations; none is in any ``generate_train`` of any seed or size."""
    return _conversations(validation_stream(seed, families), n, "validation")


def _conversations(stream: Iterator[Conversation], n: int, what: str) -> list[Conversation]:
    return [item for _, item in _take(((c.id, c) for c in stream), n, what)]


def evaluation_items(family: str, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """``n`` held-out items: dicts with ``id``, ``family``, ``prompt``, ``response`` (gold), ``answer``, ``choices``,
    ``right`` (index into choices), ``check`` (see ``checks.check``); what does not apply is None.

    ``gold``: every family's held-out templates in equal shares. ``arithmetic``: sums, with ``answer`` (compare with
    ``checks.stated_number``). ``choice``: with ``choices`` and ``right``. ``instructions``, ``text``: with ``check``.
    """
    if family not in EVALUATIONS:
        raise UserError(f"evaluation family {family!r} is not one of {', '.join(EVALUATIONS)}")
    if family == "gold":
        groups = [(name, module.HELD_OUT) for name, module in FAMILIES.items()]
    else:
        groups = [(family, FAMILIES[family].ASKED)]
    found = _take(_draws(groups, "held-out", seed, lambda key: True), n, family)
    return [
        {
            "id": f"{family}-{digest(normalised(item.prompt))[:16]}",
            "family": name,
            "prompt": item.prompt,
            "response": item.response,
            "answer": item.answer,
            "choices": list(item.choices) if item.choices else None,
            "right": item.right,
            "check": item.check,
        }
        for name, item in found
    ]
