"""Instructions whose fulfilment can be verified by a rule. Gold responses fulfil them."""

# ruff: noqa: SIM905 (word lists read better as one string)

from __future__ import annotations

from random import Random

from .item import Item, Template
from .words import ADJECTIVES, NAMES, NOUNS, a, capital, sentence

FRUIT = "apple banana cherry grape lemon mango orange peach pear plum".split()
ANIMALS = "bear cat dog eagle fox goat horse lion otter rabbit".split()
COLORS = "black blue brown gray green orange pink purple red white yellow".split()
CITIES = "Paris Rome Berlin Madrid London Tokyo Cairo Athens Vienna Oslo".split()
GROUPS = {"fruits": FRUIT, "animals": ANIMALS, "colors": COLORS, "cities": CITIES}
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}


def _about(rng: Random) -> tuple[str, str]:
    """A topic and a sentence about it."""
    topic, adjective, other = rng.choice(NOUNS), rng.choice(ADJECTIVES), rng.choice(NOUNS)
    forms = (
        f"The {topic} is {adjective} and stands near the {other}.",
        f"I saw {a(f'{adjective} {topic}')} beside the {other}.",
        f"Everybody likes the {adjective} {topic} behind the {other}.",
    )
    return topic, rng.choice(forms)


def _capitals_about(rng: Random) -> Item:
    topic, text = _about(rng)
    prompt = f"Write one sentence about {a(topic)}. Use only capital letters."
    return Item(prompt, text.upper(), check={"check": "uppercase"})


def _list_commas(rng: Random) -> Item:
    group, n = rng.choice(sorted(GROUPS)), rng.randint(2, 5)
    chosen = rng.sample(GROUPS[group], n)
    first = rng.choice(chosen)
    prompt = f"List {NUMBERS[n]} {group}, starting with {first}. Separate them with commas and write nothing else."
    ordered = [first] + [word for word in chosen if word != first]
    parts = [{"check": "n_items", "n": n}, {"check": "starts_with", "text": first}]
    return Item(prompt, ", ".join(ordered), check={"check": "all", "of": parts})


def _end_phrase(rng: Random) -> Item:
    topic, text = _about(rng)
    phrase = rng.choice(["That is all.", "Thank you.", "See you soon.", "Good luck.", "The end."])
    prompt = f'Write a sentence about {a(topic)} and finish with exactly these words: "{phrase}"'
    return Item(prompt, f"{text} {phrase}", check={"check": "ends_with", "text": phrase})


def _bullets(rng: Random) -> Item:
    group, n = rng.choice(sorted(GROUPS)), rng.randint(2, 4)
    chosen = rng.sample(GROUPS[group], n)
    prompt = f'Name {NUMBERS[n]} {group} as bullet points that begin with "- ". Include {chosen[-1]}.'
    parts = [{"check": "bullets", "n": n}, {"check": "contains", "text": chosen[-1]}]
    return Item(prompt, "\n".join(f"- {word}" for word in chosen), check={"check": "all", "of": parts})


def _include_word(rng: Random) -> Item:
    topic, text = _about(rng)
    name = rng.choice(NAMES)
    prompt = f"Write a short sentence about {a(topic)} that mentions {name}."
    response = f"{name} says: {text[0].lower()}{text[1:]}" if not text.startswith("I ") else f"{name}, {text}"
    return Item(prompt, response, check={"check": "contains", "text": name})


def _quotes(rng: Random) -> Item:
    topic, text = _about(rng)
    prompt = f"Write a sentence about {a(topic)}. Put your whole answer in double quotation marks."
    return Item(prompt, f'"{text}"', check={"check": "quoted"})


def _start_word(rng: Random) -> Item:
    topic, text = _about(rng)
    opener = rng.choice(["Today", "Yesterday", "Suddenly", "Of course", "In the morning"])
    prompt = f'Write a sentence about {a(topic)} that begins with "{opener}".'
    response = f"{opener}, {text if text.startswith('I ') else text[0].lower() + text[1:]}"
    return Item(prompt, response, check={"check": "starts_with", "text": opener})


def _two_lines(rng: Random) -> Item:
    (first, text), (second, other) = _about(rng), _about(rng)
    prompt = f"Write two lines: the first about {a(first)}, the second about {a(second)}."
    return Item(prompt, f"{text}\n{other}", check={"check": "n_lines", "n": 2})


def _yes_no(rng: Random) -> Item:
    x, y = rng.sample(range(2, 99), 2)
    prompt = f"Is {x} greater than {y}? Answer only with yes or no."
    answer = "Yes" if x > y else "No"
    return Item(prompt, answer, answer=answer, check={"check": "exact", "text": answer})


# Held out.


def _lower_about(rng: Random) -> Item:
    topic, text = _about(rng)
    prompt = f"Describe {a(topic)} in one sentence. All letters must be lowercase."
    return Item(prompt, text.lower(), check={"check": "lowercase"})


def _short(rng: Random) -> Item:
    topic, _ = _about(rng)
    adjective = rng.choice(ADJECTIVES)
    prompt = f"Describe {a(f'{adjective} {topic}')} in at most eight words."
    return Item(prompt, f"{capital(a(f'{adjective} {topic}'))} that people like.", check={"check": "max_words", "n": 8})


def _avoid(rng: Random) -> Item:
    topic, text = _about(rng)
    avoided = rng.choice(["very", "because", "beautiful", "people", "world", "many"])
    prompt = f'Write a sentence about {a(topic)} without the word "{avoided}".'
    return Item(prompt, text, check={"check": "excludes", "text": avoided})


def _greet(rng: Random) -> Item:
    name = rng.choice(NAMES)
    word = rng.choice(["Hello", "Dear", "Welcome", "Greetings"])
    prompt = f'Write a greeting to {name}. The first word must be "{word}".'
    parts = [{"check": "starts_with", "text": word}, {"check": "contains", "text": name}]
    return Item(prompt, f"{word} {name}, I hope that you are well.", check={"check": "all", "of": parts})


def _say_only(rng: Random) -> Item:
    text = capital(sentence(rng)) + "."
    prompt = f'Reply with exactly this sentence and nothing more: "{text}"'
    return Item(prompt, text, answer=text, check={"check": "exact", "text": text.rstrip(".")})


def _both_words(rng: Random) -> Item:
    x, y = rng.sample(NOUNS, 2)
    prompt = f'Write one sentence that uses both the word "{x}" and the word "{y}".'
    parts = [{"check": "contains", "text": x}, {"check": "contains", "text": y}]
    response = f"We found the {x} {rng.choice(['near', 'behind', 'beside'])} the {rng.choice(ADJECTIVES)} {y}."
    return Item(prompt, response, check={"check": "all", "of": parts})


TRAIN: tuple[Template, ...] = (
    _capitals_about,
    _list_commas,
    _end_phrase,
    _bullets,
    _include_word,
    _quotes,
    _start_word,
    _two_lines,
    _yes_no,
)
HELD_OUT: tuple[Template, ...] = (_lower_about, _short, _avoid, _greet, _say_only, _both_words)
ASKED = HELD_OUT
