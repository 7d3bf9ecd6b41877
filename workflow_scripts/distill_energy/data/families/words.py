"""Words that templates are filled with."""

# ruff: noqa: SIM905 (word lists read better as one string)

from __future__ import annotations

NAMES = (
    "Anna Ben Carla David Elena Felix Grace Hugo Irene Jonas Kira Liam Mona Noah Olga Peter Quinn Rosa Samuel Tara "
    "Umar Vera Walter Xenia Yusuf Zoe Amir Bella Chen Dora Emil Fatima George Hana Ivan Julia Karim Lena Marco Nina"
).split()

OBJECTS = (
    "apples books coins stickers marbles pencils cards shells buttons stamps candles oranges cookies flowers balloons "
    "bottles tickets photos toys cups stones keys pears lemons ribbons beads eggs plates chairs boxes"
).split()

CONTAINERS = "boxes bags baskets shelves trays jars drawers crates packets rows".split()

NOUNS = (
    "river garden window bridge mountain letter market teacher engine island forest doctor kitchen station "
    "village painter farmer captain lantern mirror pocket ladder harbour valley meadow castle "
    "orchard museum library ticket blanket hammer needle basket candle feather pepper carrot "
    "tower statue wagon barrel sailor tailor"
).split()

ADJECTIVES = (
    "quiet bright cold heavy small old green busy gentle narrow wooden golden empty warm broken distant clever simple "
    "hungry silver gray early soft tall"
).split()

VERBS_PAST = (
    "opened watched carried painted cleaned found moved visited crossed followed repaired counted closed noticed "
    "measured washed"
).split()

ADVERBS = "slowly quickly carefully quietly gladly often again today yesterday together alone".split()

LETTER_WORDS = tuple(sorted({*NOUNS, *ADJECTIVES}))


def sentence(rng) -> str:
    """A plain sentence of five to seven words without its full stop, such as ``the old farmer crossed the bridge``."""
    first, second = rng.sample(NOUNS, 2)
    words = ["the", rng.choice(ADJECTIVES), first, rng.choice(VERBS_PAST), "the", second]
    if rng.random() < 0.5:
        words.append(rng.choice(ADVERBS))
    if rng.random() < 0.3:
        words.pop(1)
    return " ".join(words)


def some_words(rng, n: int) -> list[str]:
    """``n`` different words."""
    return rng.sample(LETTER_WORDS, n)


def a(phrase: str) -> str:
    """The phrase with its indefinite article."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[0].upper() + text[1:]
