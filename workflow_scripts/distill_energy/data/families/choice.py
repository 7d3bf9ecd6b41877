"""Multiple choice on plain facts. Held-out items use other wordings and other facts than training."""

from __future__ import annotations

from functools import partial
from random import Random

from ..hashing import unit
from .facts import RELATIONS
from .item import Item, Template
from .words import capital

#: Share of every relation's facts that only held-out items use.
HELD_OUT_SHARE = 0.45
N_CHOICES = 4


def is_held_out(relation: str, key: str) -> bool:
    """Whether a fact is reserved for held-out items."""
    return unit("fact", relation, key) < HELD_OUT_SHARE


def _draw(rng: Random, relation: str, wording: str, held_out: bool) -> Item | None:
    facts = RELATIONS[relation][0]
    keys = [key for key in facts if is_held_out(relation, key) == held_out]
    if not keys:
        return None
    key = rng.choice(keys)
    right = facts[key]
    others = sorted({value for value in facts.values() if value != right})
    choices = rng.sample(others, N_CHOICES - 1)
    index = rng.randrange(N_CHOICES)
    choices.insert(index, right)
    listed = f"{', '.join(choices[:-1])} or {choices[-1]}"
    text = wording.format(key)
    prompt = f"{capital(text)} Choose one: {listed}."
    written = tuple(capital(choice) for choice in choices)
    return Item(prompt, written[index], answer=written[index], choices=written, right=index)


TRAIN: tuple[Template, ...] = tuple(
    partial(_draw, relation=relation, wording=wording, held_out=False)
    for relation, (_, train, _) in RELATIONS.items()
    for wording in train
)
HELD_OUT: tuple[Template, ...] = tuple(
    partial(_draw, relation=relation, wording=wording, held_out=True)
    for relation, (_, _, held_out) in RELATIONS.items()
    for wording in held_out
)
ASKED = HELD_OUT
