"""13-gram overlap on texts where the answer is known."""

from hypothesis import given
from hypothesis import strategies as st

from distill_energy.evaluate.contamination import grams, overlapping

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def test_thirteen_words_in_a_row():
    twelve = " ".join(LONG.split()[:12])
    assert overlapping([LONG], [f"Prefix {LONG.upper()}!"]) == [True]
    assert overlapping([LONG], [" ".join(LONG.split()[1:])]) == [True]  # thirteen of its words
    assert overlapping([LONG], [twelve]) == [False]
    assert overlapping([LONG], [f"{twelve} x {LONG.split()[13]}"]) == [False]


def test_short_prompts_match_whole_and_in_a_row():
    texts = ["Add 16 and 17. 33", "What is hot"]
    assert overlapping(["add 16 and 17", "add 16 and 1", "hot is what", "is hot", ""], texts) == [
        True,
        False,
        False,
        True,
        False,
    ]


def test_ngrams_do_not_cross_texts():
    words = LONG.split()
    assert overlapping([LONG], [" ".join(words[:7]), " ".join(words[7:])]) == [False]


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=30), st.integers(1, 5), st.data())
def test_agrees_with_a_search_in_the_words(words, n, data):
    prompt = data.draw(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=8))
    text, wanted = f" {' '.join(words)} ", [f" {' '.join(g)} " for g in grams(" ".join(prompt), n)]
    assert overlapping([" ".join(prompt)], [text], n) == [any(gram in text for gram in wanted)]
