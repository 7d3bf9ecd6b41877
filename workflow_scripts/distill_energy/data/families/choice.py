"""Multiple choice on plain facts. Held-out items use other wordings and other facts than training.

Half of the training prompts list the choices; held-out prompts do not: each choice is a sentence that the model scores
by its likelihood. (The teacher is at chance if it must pick from a list, and far above it when it scores sentences.)
"""

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


def _draw(rng: Random, relation: str, wording: str, held_out: bool, listed: bool) -> Item:
    facts, sentence = RELATIONS[relation][:2]
    key = rng.choice([key for key in facts if is_held_out(relation, key) == held_out])
    right = facts[key]
    # For an irregular plural or past tense, another word's form is a distractor, as any other answer is.
    choices = rng.sample(sorted({value for value in facts.values() if value != right}), N_CHOICES - 1)
    index = rng.randrange(N_CHOICES)
    choices.insert(index, right)
    prompt = capital(wording.format(key))
    if listed:
        prompt += f" Choose one: {', '.join(choices[:-1])} or {choices[-1]}."
    written = tuple(capital(sentence.format(key, choice)) for choice in choices)
    return Item(prompt, written[index], answer=right, choices=written, right=index)


TRAIN: tuple[Template, ...] = tuple(
    partial(_draw, relation=relation, wording=wording, held_out=False, listed=listed)
    for relation, (_, _, train, _) in RELATIONS.items()
    for wording in train
    for listed in (True, False)
)
HELD_OUT: tuple[Template, ...] = tuple(
    partial(_draw, relation=relation, wording=wording, held_out=True, listed=False)
    for relation, (_, _, _, held_out) in RELATIONS.items()
    for wording in held_out
)
ASKED = HELD_OUT
