"""The generated set: the same everywhere, no doubles, held-out items apart, gold responses right."""

import re
import subprocess
import sys
from collections import Counter

import pytest

from distill_energy.data.checks import check, last_number, stated_number
from distill_energy.data.families import choice
from distill_energy.data.families.facts import RELATIONS
from distill_energy.data.generated import EVALUATIONS, FAMILIES, evaluation_items, generate_train, generate_validation
from distill_energy.data.hashing import normalised
from distill_energy.errors import UserError


def test_same_seed_same_items_whatever_the_process():
    code = (
        "from distill_energy.data.generated import *; "
        "print(generate_train(40, 3)[-1].id, evaluation_items('gold', 9)[-1]['id'])"
    )
    out = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(out) == 1
    assert out == {f"{generate_train(40, 3)[-1].id} {evaluation_items('gold', 9)[-1]['id']}\n"}


def test_a_larger_set_begins_with_the_smaller():
    assert generate_train(300, 1)[:50] == generate_train(50, 1)
    assert generate_train(50, 1) != generate_train(50, 2)


def test_no_doubles_equal_shares_and_disjoint_splits():
    train, validation = generate_train(1200, 0), generate_validation(150, 0)
    prompts = [normalised(item.prompt) for item in train + validation]
    assert len(set(prompts)) == len(prompts)
    assert Counter(item.id.split("-")[0] for item in train) == dict.fromkeys(FAMILIES, 300)
    other_seed = {normalised(item.prompt) for item in generate_train(1200, 9)}
    assert not other_seed & {normalised(item.prompt) for item in validation}


@pytest.mark.parametrize("family", EVALUATIONS)
def test_held_out_items_are_not_in_training(family):
    items = evaluation_items(family, 200, 0)
    prompts = {normalised(item["prompt"]) for item in items}
    assert len(prompts) == 200 and len({item["id"] for item in items}) == 200
    assert not prompts & {normalised(item.prompt) for item in generate_train(3000, 0)}


def shape(prompt):
    """A prompt with what templates fill in taken out: numbers, quotations, capitals in mid-sentence, options."""
    text = re.sub(r'"[^"]*"|\d+', "_", prompt.split(" Choose one:")[0])
    return re.sub(r"(?<=\w )[A-Z]\w*", "_", text)


@pytest.mark.parametrize("family", ["arithmetic", "choice"])
def test_held_out_wordings_are_other_wordings(family):
    train = {shape(item.prompt) for item in generate_train(1000, 0, [family])}
    assert not train & {shape(item["prompt"]) for item in evaluation_items(family, 150, 0)}


def test_held_out_facts_are_other_facts():
    for relation, (facts, _, _, _) in RELATIONS.items():
        held_out = [key for key in facts if choice.is_held_out(relation, key)]
        assert 0 < len(held_out) < len(facts), relation


@pytest.mark.parametrize("family", ["arithmetic", "instructions", "text", "gold"])
@pytest.mark.parametrize("seed", [0, 1])
def test_gold_responses_pass_their_own_check(family, seed):
    for item in evaluation_items(family, 150, seed):
        if item["check"]:
            assert check(item["check"], item["response"]) == 1.0, item
        if item["family"] == "arithmetic":
            assert stated_number(item["response"]) == last_number(item["response"]) == item["answer"], item


@pytest.mark.parametrize("template", FAMILIES["instructions"].TRAIN + FAMILIES["text"].TRAIN)
def test_gold_training_responses_pass_too(template):
    from random import Random

    rng = Random(0)
    for _ in range(50):
        item = template(rng)
        if item and item.check and item.check["check"] != "exact":
            assert check(item.check, item.response) == 1.0, item


def test_worked_solutions_are_right():
    """Every equation in a worked solution holds: checked with integers, not with the template's own variables."""
    pattern = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
    operations = {
        "+": int.__add__,
        "-": int.__sub__,
        "*": int.__mul__,
        "/": lambda a, b: a // b if a % b == 0 else None,
    }
    seen = 0
    items = generate_train(600, 0, ["arithmetic"])
    for item in items:
        for a, operator, b, result in pattern.findall(item.response):
            assert operations[operator](int(a), int(b)) == int(result), item
            seen += 1
        if "The answer is" in item.response:
            last = pattern.findall(item.response)[-1]
            assert item.response.endswith(f"The answer is {last[3]}.")
    assert seen >= len(items)


def test_choices_have_one_right_answer_and_balanced_positions():
    items = evaluation_items("choice", 200, 0)
    for item in items:
        assert len(set(item["choices"])) == 4
        assert item["choices"][item["right"]] == item["response"]
    positions = Counter(item["right"] for item in items)
    assert all(30 <= positions[i] <= 70 for i in range(4)), positions  # 50 ± 3.3 standard deviations of 6.1


def test_too_many_items_is_one_clear_line():
    with pytest.raises(UserError, match=r"only \d+ different ones exist"):
        evaluation_items("choice", 100_000)
    with pytest.raises(UserError, match="poetry"):
        generate_train(1, 0, ["poetry"])
    with pytest.raises(UserError, match="poetry"):
        evaluation_items("poetry", 1)


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        ({"check": "uppercase"}, "ALL UP.", "Not up."),
        ({"check": "lowercase"}, "all low.", "Not low."),
        ({"check": "n_items", "n": 3}, "a, b and c", "a, b"),
        ({"check": "bullets", "n": 2}, "- a\n- b", "a\nb"),
        ({"check": "max_words", "n": 2}, "one two", "one two three"),
        ({"check": "excludes", "text": "very"}, "Everybody came.", "It is very cold."),
        ({"check": "quoted"}, '"so"', "so"),
        ({"check": "number", "text": "1200"}, "It is 1,200.", "It is 12."),
        ({"check": "exact", "text": "Yes"}, "yes.", "yes, indeed"),
        ({"check": "n_lines", "n": 2}, "a\n\nb", "a b"),
    ],
)
def test_checks(spec, good, bad):
    assert check(spec, good) == 1.0
    assert check(spec, bad) == 0.0
    assert check(spec, "") == 0.0


def test_check_of_several_parts_is_their_share():
    spec = {"check": "all", "of": [{"check": "starts_with", "text": "a"}, {"check": "ends_with", "text": "z"}]}
    assert [check(spec, text) for text in ("a-z", "a-y", "b-y")] == [1.0, 0.5, 0.0]
    with pytest.raises(UserError, match="sonnet"):
        check({"check": "sonnet"}, "x")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2 + 8 = 10\n\nIn mathematics, 2 + 8 is", "10"),
        ("The sum of 12 and 16 is 28, which is nice.", "28"),
        ("First 43 + 19 = 62. Then 62 - 16 = 46.", "46"),
        ("\n\n17", "17"),
        ("It equals 1,234.50 dollars", "1234.5"),
        ("none", None),
        ("", None),
    ],
)
def test_stated_number(text, number):
    assert stated_number(text) == number
