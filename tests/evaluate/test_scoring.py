"""Scores by likelihood against the model's own logits, one sequence at a time."""

import math

import pytest
import torch

from distill_energy.data.generated import evaluation_items
from distill_energy.evaluate import choice as choice_module
from distill_energy.evaluate import gold
from distill_energy.evaluate.head import Head
from distill_energy.evaluate.prefix import common_length
from distill_energy.evaluate.result import best_constant, mean_and_stderr

from .support import CountingMeter, benchmarks, open_session


@pytest.fixture(scope="module")
def session():
    return open_session()


def plain_logits(session, ids):
    with torch.no_grad():
        return session.model(torch.tensor([ids])).logits[0].float()


def test_head_over_blocks_is_the_whole_layer(monkeypatch):
    monkeypatch.setattr("distill_energy.evaluate.head.BLOCK", 100)
    monkeypatch.setattr("distill_energy.evaluate.head.ROWS", 3)
    model = open_session().model
    layer = model.get_output_embeddings()
    layer.bias = torch.nn.Parameter(torch.randn(layer.weight.shape[0]))
    model.config.final_logit_softcapping = 2.0
    hidden = torch.randn(7, layer.weight.shape[1])
    logits = 2.0 * torch.tanh(layer(hidden) / 2.0)
    tokens = torch.arange(7) * 50
    with torch.no_grad():
        best, normaliser = Head(model).summary(hidden)
        assert torch.equal(best, logits.argmax(-1))
        torch.testing.assert_close(normaliser, logits.logsumexp(-1))
        torch.testing.assert_close(Head(model).logits_of(hidden, tokens), logits[torch.arange(7), tokens])


def test_equal_logits_take_the_first():
    model = open_session().model
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
        best, normaliser = Head(model).summary(torch.randn(2, 32))
    assert best.tolist() == [0, 0]
    assert normaliser.tolist() == pytest.approx([math.log(384)] * 2)


def test_gold_predictions_are_those_of_single_sequences(session):
    items = evaluation_items("gold", 12, 3)
    meter = session.meter = CountingMeter()
    rows = gold.predict(session, items)
    fed = 0
    prompts = []
    for item, row in zip(items, rows, strict=True):
        prompt, response = session.exchange(item["prompt"], item["response"])
        prompts.append(prompt)
        logits = plain_logits(session, prompt + response)[len(prompt) - 1 : -1]
        assert row.gold == response and response[-1] == session.tokenizer.eos_token_id
        assert row.predicted == logits.argmax(-1).tolist()
        expected = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).mean()
        assert row.log_probability == pytest.approx(float(expected), abs=1e-4)
        fed += len(prompt) + len(response) - 1
    shared = common_length(prompts)
    assert shared >= 4
    assert meter.tokens["processed"] == fed - (len(items) - 1) * shared


def test_choice_likelihoods_are_those_of_single_sequences(session):
    """Options of one and of many tokens, shared prompt, padding on both sides."""
    prompts = [session.prompt_ids(text) for text in ("What is hot?", "Name one colour of the sky, please.", "Why?")]
    options = [[[70], [71, 72, 73]], [[80, 81], [82, 83, 84, 85, 86]], [[90], [91]]]
    found = choice_module.score_continuations(session, prompts, options)
    for prompt, row, values in zip(prompts, options, found, strict=True):
        for option, (value, n) in zip(row, values, strict=True):
            logp = plain_logits(session, prompt + option).log_softmax(-1)
            expected = sum(float(logp[len(prompt) - 1 + j, token]) for j, token in enumerate(option))
            assert value == pytest.approx(expected, abs=1e-4)
            assert n == len(option)


def test_choice_of_a_model_that_knows_nothing_is_zero(session, monkeypatch):
    """Equal likelihoods: the score is exactly the chance level, 0; certainty is 1."""
    params = benchmarks(c={"kind": "choice", "items": 9})["c"]
    monkeypatch.setattr(choice_module, "log_likelihoods", lambda s, p, options: [[(-3.0, 1)] * len(o) for o in options])
    result = choice_module.choice(session, "c", params)
    assert result.score == pytest.approx(0.0, abs=1e-12) and result.chance == 0.0
    assert choice_module.above_chance(1.0, 4) == 1.0
    assert choice_module.above_chance(0.0, 4) == pytest.approx(-1 / 3)
    items = evaluation_items("choice", 9, 0)
    rights = [item["right"] for item in items]
    certain = [[(0.0 if i == right else -60.0, 1) for i in range(4)] for right in rights]
    monkeypatch.setattr(choice_module, "log_likelihoods", lambda s, p, options: certain)
    assert choice_module.choice(session, "c", params).score == pytest.approx(1.0)


def test_common_beginning_of_options_cancels(session):
    """Shares of probability are those of the whole options' likelihoods."""
    options = ["The sky is blue.", "The sky is bright red.", "The sky is black."]
    (found,) = choice_module.log_likelihoods(session, ["Which colour?"], [options])
    prompt = session.prompt_ids("Which colour?")
    whole = []
    for text in options:
        ids = session.encode(text)
        logp = plain_logits(session, prompt + ids).log_softmax(-1)
        whole.append(sum(float(logp[len(prompt) - 1 + j, token]) for j, token in enumerate(ids)))
    expected = choice_module.softmax(whole)
    assert choice_module.softmax([value for value, _ in found]) == pytest.approx(expected, abs=1e-5)
    assert [n for _, n in found] == [len(text) - len("The sky is b") for text in options]


def test_best_constant_and_stderr():
    assert best_constant([[1, 1, 2, 2], [1, 3]]) == pytest.approx((0.5 + 0.5) / 2)
    assert mean_and_stderr([0.0, 1.0]) == (0.5, pytest.approx(0.5))
    assert mean_and_stderr([1.0]) == (1.0, None)
    assert mean_and_stderr([]) == (None, None)


def test_common_length():
    assert common_length([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 9, 9]]) == 2
    assert common_length([[1, 2], [1, 2, 3]]) == 1  # one token at least is left to each row
