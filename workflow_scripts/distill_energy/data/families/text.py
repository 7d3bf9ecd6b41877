"""Text manipulation: each response follows from the prompt by a rule."""

from __future__ import annotations

from random import Random

from .item import Item, Template
from .words import ADJECTIVES, LETTER_WORDS, NAMES, NOUNS, a, capital, sentence, some_words


def _ruled(prompt: str, response: str) -> Item:
    return Item(prompt, response, answer=response, check={"check": "exact", "text": response.strip('."')})


def _uppercase(rng: Random) -> Item:
    text = sentence(rng)
    return _ruled(f"Write this sentence in capital letters: {text}.", text.upper() + ".")


def _reverse_words(rng: Random) -> Item:
    chosen = some_words(rng, rng.randint(3, 5))
    return _ruled(f"Write these words in reverse order: {' '.join(chosen)}", " ".join(reversed(chosen)))


def _sort_words(rng: Random) -> Item:
    chosen = some_words(rng, rng.randint(3, 5))
    return _ruled(f"Sort these words alphabetically: {', '.join(chosen)}.", ", ".join(sorted(chosen)))


def _count_words(rng: Random) -> Item:
    text = sentence(rng)
    n = len(text.split())
    return Item(
        f'How many words are in the sentence "{capital(text)}."?', f"The sentence has {n} words.", answer=str(n)
    )


def _first_letter(rng: Random) -> Item:
    word = rng.choice(LETTER_WORDS)
    return _ruled(f'What is the first letter of the word "{word}"?', f'The first letter of "{word}" is {word[0]}.')


def _replace(rng: Random) -> Item:
    text = sentence(rng)
    old = next(word for word in text.split() if word in NOUNS)
    new = rng.choice([word for word in NOUNS if word != old])
    prompt = f'Replace the word "{old}" with "{new}" in this sentence: {capital(text)}.'
    return _ruled(prompt, capital(text.replace(old, new)) + ".")


def _repeat(rng: Random) -> Item:
    word, n = rng.choice(LETTER_WORDS), rng.randint(2, 5)
    return _ruled(f'Repeat the word "{word}" {n} times, separated by spaces.', " ".join([word] * n))


def _join(rng: Random) -> Item:
    chosen = some_words(rng, 3)
    return _ruled(f"Join these words with hyphens: {', '.join(chosen)}.", "-".join(chosen))


def _spell(rng: Random) -> Item:
    word = rng.choice(LETTER_WORDS)
    return _ruled(f'Spell the word "{word}" letter by letter.', "-".join(word.upper()))


def _question(rng: Random) -> Item:
    name, noun = rng.choice(NAMES), rng.choice(NOUNS)
    adjective = rng.choice(ADJECTIVES)
    prompt = f"Turn this statement into a question: {name} likes the {adjective} {noun}."
    return _ruled(prompt, f"Does {name} like the {adjective} {noun}?")


def _longest(rng: Random) -> Item | None:
    chosen = some_words(rng, 4)
    lengths = sorted(len(word) for word in chosen)
    if lengths[-1] == lengths[-2]:
        return None
    longest = max(chosen, key=len)
    return _ruled(f"Which of these words is the longest: {', '.join(chosen)}?", f'The longest word is "{longest}".')


def _find_name(rng: Random) -> Item:
    name, noun = rng.choice(NAMES), rng.choice(NOUNS)
    place = rng.choice([word for word in NOUNS if word != noun])
    prompt = f"Find the name of the person in this sentence: On Monday {name} saw {a(noun)} near the {place}."
    return _ruled(prompt, f"The person's name is {name}.")


# Held out.


def _last_word(rng: Random) -> Item:
    text = sentence(rng)
    last = text.split()[-1]
    return _ruled(f'What is the last word of "{capital(text)}."?', f'The last word is "{last}".')


def _lowercase(rng: Random) -> Item:
    text = sentence(rng)
    return _ruled(f"Rewrite in lowercase letters: {text.upper()}.", text + ".")


def _backwards_list(rng: Random) -> Item:
    chosen = some_words(rng, rng.randint(3, 4))
    return _ruled(f"Give this list backwards: {', '.join(chosen)}.", ", ".join(reversed(chosen)))


def _third_word(rng: Random) -> Item:
    chosen = some_words(rng, 5)
    return _ruled(f"Name the third item of this list: {', '.join(chosen)}.", f"The third item is {chosen[2]}.")


def _copy(rng: Random) -> Item:
    text = sentence(rng)
    return _ruled(f"Copy this sentence exactly: {capital(text)}.", capital(text) + ".")


def _shortest(rng: Random) -> Item | None:
    chosen = some_words(rng, 4)
    lengths = sorted(len(word) for word in chosen)
    if lengths[0] == lengths[1]:
        return None
    return _ruled(
        f"Which word is the shortest: {', '.join(chosen)}?", f'The shortest word is "{min(chosen, key=len)}".'
    )


TRAIN: tuple[Template, ...] = (
    _uppercase,
    _reverse_words,
    _sort_words,
    _count_words,
    _first_letter,
    _replace,
    _repeat,
    _join,
    _spell,
    _question,
    _longest,
    _find_name,
)
HELD_OUT: tuple[Template, ...] = (_last_word, _lowercase, _backwards_list, _third_word, _copy, _shortest)
ASKED = HELD_OUT
