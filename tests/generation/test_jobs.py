"""Which prompts, which shards, where an answer ends, which answers stay."""

import pytest

from distill_energy.models.tiny import tiny_tokenizer
from distill_energy.teacher.generation import jobs
from distill_energy.teacher.generation.jobs import Prompt, Raw

END = 2


@pytest.mark.parametrize(
    ("ids", "kept", "reason"),
    [
        ([5, 6, END, 0, 0], [5, 6, END], "stop"),
        ([5, 6, 7], [5, 6, 7], "length"),
        ([END], [END], "stop"),
        ([], [], "length"),
        ([5, 9, END], [5, 9], "stop"),  # 9 ends too
    ],
)
def test_cut(ids, kept, reason):
    assert jobs.cut(ids, [END, 9]) == (kept, reason)


def example(i, length):
    return {"id": f"e{i:02d}", "prompt_ids": list(range(3, 3 + length)), "prompt": f"p{i}"}


def test_prompts_are_chosen_by_hash_and_sorted_by_length():
    rows = [example(i, 5 + (i * 7) % 11) for i in range(20)]
    chosen = jobs.choose_prompts(rows, 8, 0, max_new=4, max_length=64)
    assert len(chosen) == 8
    assert chosen == jobs.choose_prompts(rows[::-1], 8, 0, max_new=4, max_length=64)
    assert {p.id for p in chosen} != {p.id for p in jobs.choose_prompts(rows, 8, 1, max_new=4, max_length=64)}
    assert {p.id for p in chosen} < {p.id for p in jobs.choose_prompts(rows, 12, 0, max_new=4, max_length=64)}
    lengths = [len(p.prompt_ids) for p in chosen]
    assert lengths == sorted(lengths)
    assert len(jobs.choose_prompts(rows, None, 0, 4, 64)) == 20


def test_room_is_what_the_length_leaves():
    rows = [example(0, 10), example(1, 14), example(2, 16), example(3, 20)]
    chosen = jobs.choose_prompts(rows, None, 0, max_new=4, max_length=16)
    assert [(p.id, p.room) for p in chosen] == [("e00", 4), ("e01", 2)]


def test_shards_cover_everything_once():
    prompts = [Prompt(str(i), (1,), "p", 3) for i in range(50)]
    shards = jobs.shard(prompts, 3)
    assert [prompt for members in shards for prompt in members] == prompts
    assert {len(s) for s in shards[:-1]} == {3 * jobs.BATCHES_PER_SHARD}
    assert len({jobs.shard_seed(s, i) for s in range(5) for i in range(5)}) == 25


def test_shard_round_trip_and_damage(tmp_path):
    prompts = [Prompt("a", (1,), "p", 3), Prompt("b", (1,), "q", 3)]
    answers = [Raw("a", [5, END], "stop"), Raw("b", [6, 7, 8], "length")]
    path = tmp_path / "answers.parquet"
    assert jobs.load_shard(path, prompts) is None
    jobs.save_shard(path, answers, [END])
    assert jobs.load_shard(path, prompts) == (answers, [END])
    assert jobs.load_shard(path, prompts[::-1]) is None  # other prompts
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert jobs.load_shard(path, prompts) is None  # half a file


def test_filters_count_what_they_take():
    tokenizer = tiny_tokenizer(300)

    def raw(i, text, end=True):
        ids = tokenizer.encode(text, add_special_tokens=False) + ([END] if end else [])
        return Raw(str(i), ids, "stop" if end else "length")

    answers = [raw(0, "fine"), raw(1, ""), raw(2, " \n"), raw(3, "ab"), raw(4, "fine"), raw(5, "long text", end=False)]
    prompts = [Prompt(str(i), (1, 4), "same" if i in (0, 4) else f"p{i}", 20) for i in range(6)]
    rows, counts = jobs.rows_and_counts(prompts, answers, tokenizer, 3, [END])
    assert [row["id"] for row in rows] == ["0", "5"]
    assert counts == {"n_empty": 2, "n_too_short": 1, "n_duplicates": 1, "n_length": 1}
    assert rows[0]["loss_mask"] == [0, 0, 1, 1, 1, 1, 1]  # four bytes and the end token
    assert rows[0]["n_generated"] == 5 and rows[1]["n_generated"] == 9
    assert rows[0]["response"] == "fine"


def test_split_by_hash():
    rows = [{"id": str(i)} for i in range(200)]
    train, validation = jobs.split(rows, 0.1, 0)
    assert 8 <= len(validation) <= 34 and len(train) + len(validation) == 200  # 20 ± 3.3 standard deviations of 4.2
    more = jobs.split(rows + [{"id": str(i)} for i in range(200, 300)], 0.1, 0)[1]
    assert {row["id"] for row in validation} == {row["id"] for row in more if int(row["id"]) < 200}
    assert all(len(part) for part in jobs.split(rows[:2], 0.01, 0))
    assert all(len(part) for part in jobs.split(rows[:2], 0.99, 0))
