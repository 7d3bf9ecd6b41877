"""Generation by transformers: reproducible, resumable, cut at the end token, padded on the left."""

import json

import pytest
import torch

from distill_energy.errors import UserError
from distill_energy.models.sources import load_model, load_tokenizer
from distill_energy.teacher.generation import jobs
from distill_energy.teacher.generation import stage as stage_module
from distill_energy.teacher.generation.jobs import Prompt
from distill_energy.teacher.generation.transformers_engine import Sampling, TransformersEngine

from .setting import GENERATION, TEACHER, generate, make_data, rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """One uninterrupted run."""
    return generate(tmp_path_factory.mktemp("whole"), data)


def test_prompts_are_training_prompts_and_responses_follow_them(whole, data):
    import pyarrow.parquet as pq

    ctx, results = whole
    source = {row["id"]: row for row in pq.read_table(data / "train.parquet").to_pylist()}
    made = rows(ctx) + rows(ctx, "validation")
    assert len({row["id"] for row in made}) == len(made) == results["n_train"] + results["n_validation"]
    for row in made:
        origin = source[row["id"]]
        assert row["prompt_ids"] == origin["prompt_ids"] and row["prompt"] == origin["prompt"]
        assert row["input_ids"][: len(row["prompt_ids"])] == row["prompt_ids"]
        assert sum(row["loss_mask"]) == row["n_generated"] == len(row["input_ids"]) - len(row["prompt_ids"])
        assert row["n_generated"] <= 10
        ended = row["input_ids"][-1] == 2
        assert ended == (row["finish_reason"] == "stop")
        assert row["input_ids"].count(2) - row["prompt_ids"].count(2) == int(ended)  # nothing after the end token


def test_tokens_are_those_before_the_end(whole, data):
    import pyarrow.parquet as pq

    ctx, results = whole
    prompt_tokens = sum(len(ids) for ids in pq.read_table(data / "train.parquet")["prompt_ids"].to_pylist())
    assert ctx.meter.tokens["generated"] == results["generated_tokens"]
    assert ctx.meter.tokens["processed"] == prompt_tokens + results["generated_tokens"]
    filtered = results["n_empty"] + results["n_too_short"] + results["n_duplicates"]
    assert results["n_prompts"] == results["n_train"] + results["n_validation"] + filtered == 26


def test_sampling_parameters_are_in_the_file(whole):
    import pyarrow.parquet as pq

    metadata = pq.read_schema(whole[0].out / "train.parquet").metadata
    assert json.loads(metadata[b"sampling"]) == GENERATION
    assert json.loads(metadata[b"stop_ids"]) == [2]
    assert metadata[b"engine"] == b"transformers"


def test_same_seed_same_text_other_seed_other_text(tmp_path, whole, data):
    again = generate(tmp_path / "again", data)[0]
    assert rows(again) == rows(whole[0]) and rows(again, "validation") == rows(whole[0], "validation")
    other = {row["id"]: row["response"] for row in rows(generate(tmp_path / "other", data, {"seed": 1})[0])}
    mine = {row["id"]: row["response"] for row in rows(whole[0])}
    shared = other.keys() & mine.keys()
    assert sum(other[i] != mine[i] for i in shared) > len(shared) / 2


def test_a_killed_run_goes_on_and_gives_the_same(tmp_path, whole, data, monkeypatch):
    real = jobs.save_shard

    def dies_at_the_second(path, answers, stops):
        if path.name == "answers-00001.parquet":
            raise KeyboardInterrupt
        real(path, answers, stops)

    monkeypatch.setattr(stage_module, "main", stage_module.main)
    monkeypatch.setattr(jobs, "save_shard", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, data)
    monkeypatch.setattr(jobs, "save_shard", real)
    assert not (tmp_path / "out" / "train.parquet").exists()
    ctx, results = generate(tmp_path, data)
    assert results["n_shards_resumed"] == 1 and results["n_shards"] == 3
    assert rows(ctx) == rows(whole[0])
    assert ctx.meter.tokens["generated"] < results["generated_tokens"]  # the finished shard is not computed again


def test_a_run_whose_shards_are_all_there_loads_no_model(tmp_path, whole, data, monkeypatch):
    generate(tmp_path, data)
    monkeypatch.setattr(stage_module, "make_engine", lambda *arguments: pytest.fail("the model was loaded"))
    again, results = generate(tmp_path, data)
    assert results["n_shards_resumed"] == results["n_shards"]
    assert rows(again) == rows(whole[0]) and again.meter.tokens == {}


@pytest.mark.parametrize("side", ["batch", "alone"])
def test_left_padding_does_not_change_greedy_answers(side, data):
    """Greedy answers in a batch of unequal lengths are those of each prompt alone, by a plain argmax loop."""
    model, tokenizer = load_model(TEACHER, {}, dtype="float32"), load_tokenizer(TEACHER, {})
    prompts = [Prompt(str(n), tuple(range(5, 5 + n)), "p", 6) for n in (2, 5, 11)]
    engine = TransformersEngine(model, tokenizer, Sampling(0.0, 0.95, 3 if side == "batch" else 1))
    answers = engine.answer(prompts, 0)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt.prompt_ids)
        with torch.no_grad():
            for _ in range(6):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer.ids == jobs.cut(ids[len(prompt.prompt_ids) :], [2])[0]


def test_nucleus_sampling_draws_from_the_nucleus_only():
    """First tokens of many draws lie in the smallest set of mass ≥ top_p, with its renormalised frequencies."""
    model, tokenizer = load_model(TEACHER, {}, dtype="float32"), load_tokenizer(TEACHER, {})
    model.lm_head.weight.data *= 3  # peaked enough for a nucleus much smaller than the vocabulary
    prompt = (5, 6, 7, 8)
    with torch.no_grad():
        p = torch.softmax(model(torch.tensor([prompt])).logits[0, -1] / 0.8, -1)
    order = p.argsort(descending=True)
    size = int((p[order].cumsum(0) < 0.7).sum()) + 1
    nucleus = order[:size].tolist()
    assert 2 <= size < 150
    engine = TransformersEngine(model, tokenizer, Sampling(0.8, 0.7, 2000))
    draws = [answer.ids[0] for answer in engine.answer([Prompt(str(i), prompt, "p", 1) for i in range(2000)], 0)]
    assert set(draws) <= set(nucleus)
    expected = p[nucleus] / p[nucleus].sum()
    counts = torch.tensor([draws.count(token) for token in nucleus], dtype=torch.float)
    deviation = (counts / 2000 - expected) / (expected * (1 - expected) / 2000).sqrt()
    assert deviation.abs().max() < 4.5


def test_engine_leaves_the_random_state_alone(data):
    model, tokenizer = load_model(TEACHER, {}, dtype="float32"), load_tokenizer(TEACHER, {})
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    TransformersEngine(model, tokenizer, Sampling(1.0, 0.95, 3)).answer([Prompt("a", (5, 6), "p", 3)], 0)
    assert torch.equal(torch.rand(2), expected)


def test_no_room_or_no_usable_answer_is_one_clear_line(tmp_path, data):
    with pytest.raises(UserError, match="leaves room"):
        generate(tmp_path / "a", data, max_length=10)
    with pytest.raises(UserError, match="n_too_short"):
        generate(tmp_path / "b", data, {"min_new_tokens": 11})


def test_a_missing_vllm_environment_is_one_clear_line(tmp_path, data, monkeypatch):
    monkeypatch.setenv("DISTILL_ENERGY_VLLM_PYTHON", str(tmp_path / "no" / "python"))
    with pytest.raises(UserError, match="DISTILL_ENERGY_VLLM_PYTHON"):
        generate(tmp_path, data, {"engine": "vllm"})
