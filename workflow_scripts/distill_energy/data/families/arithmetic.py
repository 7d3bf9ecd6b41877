"""Arithmetic: word problems with worked solutions, and direct questions. Numbers stay small on purpose."""

from __future__ import annotations

from random import Random

from .item import Item, Template
from .words import CONTAINERS, NAMES, OBJECTS


def _worked(prompt: str, solution: str, answer: int) -> Item:
    return Item(prompt, f"{solution} The answer is {answer}.", answer=str(answer))


def _buy(rng: Random) -> Item:
    name, thing = rng.choice(NAMES), rng.choice(OBJECTS)
    a, b = rng.randint(3, 60), rng.randint(2, 40)
    prompt = f"{name} has {a} {thing} and buys {b} more. How many {thing} does {name} have now?"
    return _worked(prompt, f"{name} starts with {a} and adds {b}: {a} + {b} = {a + b}.", a + b)


def _give(rng: Random) -> Item:
    (name, friend), thing = rng.sample(NAMES, 2), rng.choice(OBJECTS)
    b = rng.randint(2, 30)
    a = b + rng.randint(1, 50)
    prompt = f"{name} had {a} {thing} and gave {b} of them to {friend}. How many {thing} are left?"
    return _worked(prompt, f"We take {b} away from {a}: {a} - {b} = {a - b}.", a - b)


def _groups(rng: Random) -> Item:
    thing, box = rng.choice(OBJECTS), rng.choice(CONTAINERS)
    a, b = rng.randint(2, 9), rng.randint(2, 12)
    prompt = f"There are {a} {box} with {b} {thing} in each. How many {thing} are there in total?"
    return _worked(prompt, f"We multiply {a} by {b}: {a} * {b} = {a * b}.", a * b)


def _share(rng: Random) -> Item:
    name, thing = rng.choice(NAMES), rng.choice(OBJECTS)
    n, each = rng.randint(2, 9), rng.randint(2, 12)
    prompt = f"{name} shares {n * each} {thing} equally among {n} children. How many {thing} does each child get?"
    return _worked(prompt, f"We divide {n * each} by {n}: {n * each} / {n} = {each}.", each)


def _two_steps(rng: Random) -> Item:
    name, thing = rng.choice(NAMES), rng.choice(OBJECTS)
    a, b = rng.randint(10, 50), rng.randint(2, 30)
    c = rng.randint(1, a + b - 1)
    prompt = f"{name} collects {a} {thing}, finds {b} more, and then loses {c}. How many {thing} remain?"
    steps = f"First {a} + {b} = {a + b}. Then {a + b} - {c} = {a + b - c}."
    return _worked(prompt, steps, a + b - c)


def _price(rng: Random) -> Item:
    name, thing = rng.choice(NAMES), rng.choice(OBJECTS)
    n, price = rng.randint(2, 9), rng.randint(2, 12)
    prompt = f"{name} buys {n} {thing} at {price} dollars each. How much does {name} pay?"
    return _worked(prompt, f"{n} {thing} cost {n} * {price} = {n * price} dollars.", n * price)


def _more_than(rng: Random) -> Item:
    (name, friend), thing = rng.sample(NAMES, 2), rng.choice(OBJECTS)
    a, b = rng.randint(3, 40), rng.randint(2, 20)
    prompt = f"{name} has {a} {thing}. {friend} has {b} more than {name}. How many do they have together?"
    steps = f"{friend} has {a} + {b} = {a + b}. Together they have {a} + {a + b} = {2 * a + b}."
    return _worked(prompt, steps, 2 * a + b)


def _double(rng: Random) -> Item:
    name, thing = rng.choice(NAMES), rng.choice(OBJECTS)
    a = rng.randint(3, 48)
    prompt = f"Yesterday {name} sold {a} {thing}. Today {name} sold twice as many. How many were sold today?"
    return _worked(prompt, f"Twice {a} is 2 * {a} = {2 * a}.", 2 * a)


def _what_is_sum(rng: Random) -> Item:
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    return Item(f"What is {a} + {b}?", f"{a} + {b} = {a + b}", answer=str(a + b))


def _compute_difference(rng: Random) -> Item:
    b = rng.randint(1, 60)
    a = b + rng.randint(0, 40)
    return Item(f"Compute {a} - {b}.", f"{a} - {b} = {a - b}", answer=str(a - b))


def _calculate_product(rng: Random) -> Item:
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    return Item(f"Calculate {a} * {b}.", f"{a} * {b} = {a * b}", answer=str(a * b))


def _add_words(rng: Random) -> Item:
    a, b = rng.randint(2, 60), rng.randint(2, 60)
    return Item(f"Add {a} and {b}.", f"{a} + {b} = {a + b}", answer=str(a + b))


def _how_much(rng: Random) -> Item:
    a, b = rng.randint(2, 60), rng.randint(2, 60)
    return Item(f"How much is {a} plus {b}?", f"{a} plus {b} is {a + b}.", answer=str(a + b))


# Held out: other wordings and other situations. The direct sums have wordings and numbers with which the default
# teacher is right in six cases of ten (greedy, 60 items); with most other wordings it seldom is.


def _value_of(rng: Random) -> Item:
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    return Item(f"Tell me the value of {a} + {b}.", f"The value of {a} + {b} is {a + b}.", answer=str(a + b))


def _result_of(rng: Random) -> Item:
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    return Item(f"What is the result of {a} + {b}?", f"The result of {a} + {b} is {a + b}.", answer=str(a + b))


def _compute_sum(rng: Random) -> Item:
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    return Item(f"Compute the sum {a} + {b}.", f"The sum of {a} and {b} is {a + b}.", answer=str(a + b))


def _bus(rng: Random) -> Item:
    a, b = rng.randint(5, 40), rng.randint(2, 20)
    prompt = f"A bus carries {a} people. At the next stop {b} people get on. How many people are on the bus?"
    return _worked(prompt, f"We add {b} to {a}: {a} + {b} = {a + b}.", a + b)


def _pages(rng: Random) -> Item:
    name, b = rng.choice(NAMES), rng.randint(5, 40)
    a = b + rng.randint(5, 60)
    prompt = f"{name} reads a book of {a} pages and has finished {b} pages. How many pages are left to read?"
    return _worked(prompt, f"We take {b} away from {a}: {a} - {b} = {a - b}.", a - b)


def _seats(rng: Random) -> Item:
    a, b = rng.randint(2, 9), rng.randint(2, 12)
    prompt = f"A hall has {a} rows of {b} seats. How many seats does the hall have?"
    return _worked(prompt, f"We multiply {a} by {b}: {a} * {b} = {a * b}.", a * b)


TRAIN: tuple[Template, ...] = (
    _buy,
    _give,
    _groups,
    _share,
    _two_steps,
    _price,
    _more_than,
    _double,
    _what_is_sum,
    _compute_difference,
    _calculate_product,
    _add_words,
    _how_much,
)
HELD_OUT: tuple[Template, ...] = (_value_of, _result_of, _compute_sum, _bus, _pages, _seats)
#: Asked of the models: sums only, since exact match on the rest is near 0 even for the teacher.
ASKED: tuple[Template, ...] = (_value_of, _result_of, _compute_sum)
