"""13-gram overlap on texts where the answer is known."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from distill_energy.config import load_config
from distill_energy.data.generated import evaluation_items
from distill_energy.evaluate import contamination, stage
from distill_energy.evaluate.contamination import grams, overlapping, words
from distill_energy.plan import build_plan

from .support import benchmarks, context

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


def one_by_one(prompts, texts, n=13):
    """The search as releases up to 0.2 made it: every n-gram of a text as a tuple, looked up among the prompts'."""
    owners = {}
    for index, prompt in enumerate(prompts):
        for gram in grams(prompt, n):
            owners.setdefault(gram, set()).add(index)
    hit = [False] * len(prompts)
    for text in texts:
        found = words(text)
        for size in {len(gram) for gram in owners}:
            for start in range(len(found) - size + 1):
                for index in owners.get(tuple(found[start : start + size]), ()):
                    hit[index] = True
    return hit


@given(st.integers(0, 10_000))
def test_flags_are_those_of_a_search_gram_by_gram(seed):
    draw = random.Random(seed)

    def text(longest):
        return " ".join(draw.choice(["ab", "c", "ç", "d1", "e,", "F.", "É"]) for _ in range(draw.randint(0, longest)))

    prompts, texts = [text(16) for _ in range(12)], [text(60) for _ in range(8)]
    assert overlapping(prompts, texts, 5) == one_by_one(prompts, texts, 5)


def test_flags_of_the_project_s_own_suites_are_the_same(monkeypatch):
    monkeypatch.setattr(contamination, "TEXTS", 7)  # several batches
    prompts = [item["prompt"] for seed in (0, 1) for item in evaluation_items("gold", 60, seed)]
    texts = (
        [f"{p}\n{p[:40]}" for p in prompts[::3]] + [f"so {p} and" for p in prompts[1::5]] + [" ".join(prompts)[:900]]
    )
    found = overlapping(prompts, texts)
    assert found == one_by_one(prompts, texts) and 0 < sum(found) < len(found)


def test_grams_of_one_hash_are_told_apart(monkeypatch):
    """Every hash the same: each candidate is compared in full."""

    class Same:
        def integers(self, low, high, size, dtype):
            return contamination.np.full(size, low - low, dtype)

    monkeypatch.setattr(contamination.np.random, "default_rng", lambda seed: Same())
    prompts, texts = ["a b", "b a", "c a", "a c b", "c"], ["x a c b", "b a"]
    assert overlapping(prompts, texts) == one_by_one(prompts, texts) == [False, True, False, True, True]


def test_made_once_and_looked_up(tmp_path, monkeypatch):
    """The stage flags the teacher's prompts; an evaluation reads them and does not open the training data."""
    suite = benchmarks(gold={"kind": "gold_accuracy", "items": 6})
    asked = context(tmp_path / "teacher", suite)
    stage.main(asked)
    prompts = [item["prompt"] for item in evaluation_items("gold", 6, 0)]
    data = tmp_path / "data"
    data.mkdir()
    rows = {"prompt": [prompts[1], "unrelated"], "response": ["x", "y"]}
    pq.write_table(pa.table(rows), data / "train.parquet")
    ctx = context(tmp_path / "flags", {}, inputs={"teacher_evaluation": asked.out, "data": data})
    assert contamination.main(ctx) == {"prompts": 6, "items": 6, "contaminated": 1}
    flags = pq.read_table(ctx.out / "flags.parquet").to_pylist()
    assert [row["contaminated"] for row in flags] == [False, True, False, False, False, False]

    inputs = {"data": data, "contamination": ctx.out}
    with monkeypatch.context() as patch:
        patch.setattr(contamination, "training_texts", None)  # would raise
        student = context(tmp_path / "student", suite, role="student", inputs=inputs)
        assert stage.main(student)["gold.contaminated"] == 1
    # What the teacher was not asked is looked for: the same count.
    (asked.out / "prompts.parquet").unlink()
    assert contamination.main(ctx)["prompts"] == 0
    student = context(tmp_path / "again", suite, role="student", inputs=inputs)
    assert stage.main(student)["gold.contaminated"] == 1


def test_one_for_a_data_set_and_a_suite_whatever_the_students(repo):
    config = load_config(repo / "config.yaml")
    names = list(config.students)
    assert len(names) > 1
    found = []
    for students in (names[:1], names):
        plan = build_plan(config.model_copy(update={"students": students}))
        assert {node.labels["student"] for node in plan.of("student_training")} == set(students)
        found.append({node.key for node in plan.of("contamination")})
    assert found[0] == found[1] and len(found[0]) == len(config.datasets) * len(config.evaluation.resolved_suites())
