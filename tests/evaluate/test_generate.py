"""Batched generation against one prompt at a time."""

import pytest
import torch

from distill_energy.evaluate.batching import by_length
from distill_energy.evaluate.generate import generate

from .support import CountingMeter, open_session

TEXTS = ["Hi.", "Name three colours, please.", "What is the sum of 12 and 30?", "Why?"]


@pytest.fixture(scope="module")
def session():
    return open_session()


def alone(session, ids, steps):
    """Greedy continuation without cache, padding or batch."""
    ids = list(ids)
    made = []
    for _ in range(steps):
        with torch.no_grad():
            token = int(session.model(torch.tensor([ids])).logits[0, -1].argmax())
        if token in session.stop_ids:
            return made, True
        ids.append(token)
        made.append(token)
    return made, False


def test_greedy_batches_equal_single_prompts(session):
    meter = session.meter = CountingMeter()
    prompts = [session.prompt_ids(text) for text in TEXTS]
    done = generate(session, prompts, 12)
    for prompt, completion in zip(prompts, done, strict=True):
        tokens, ended = alone(session, prompt, 12)
        assert completion.text == session.tokenizer.decode(tokens, skip_special_tokens=True)
        assert completion.tokens == len(tokens) + ended
        assert completion.finish == ("stop" if ended else "length")
    longest = max(len(p) for p in prompts)
    assert meter.tokens["processed"] == sum(len(p) for p in prompts)
    assert meter.tokens["generated"] == sum(c.tokens for c in done)
    assert meter.tokens["padding"] == sum(longest - len(p) for p in prompts) + sum(
        max(c.tokens for c in done) - c.tokens for c in done
    )


def test_end_of_turn_ends_a_row_only(session):
    """The end-of-turn token of one row leaves the others going, and what follows it is padding."""
    prompts = [session.prompt_ids(text) for text in TEXTS]
    whole = [alone(session, p, 10)[0] for p in prompts]
    stop = whole[0][3]
    first = [row.index(stop) if stop in row else None for row in whole]
    session.__dict__["stop_ids"] = [stop]
    try:
        done = generate(session, prompts, 10)
    finally:
        del session.__dict__["stop_ids"]
    assert [c.tokens for c in done] == [10 if at is None else at + 1 for at in first]
    assert [c.finish for c in done] == ["length" if at is None else "stop" for at in first]


def test_stop_strings_cut_the_text(session):
    prompts = [session.prompt_ids(text) for text in TEXTS]
    plain = generate(session, prompts, 16)
    target = plain[1].text[4:6]
    assert target
    cut = generate(session, prompts, 16, stop=[target])
    for before, after in zip(plain, cut, strict=True):
        at = before.text.find(target)
        assert after.text == (before.text if at < 0 else before.text[:at])
        assert after.finish == (before.finish if at < 0 else "stop")
        assert after.tokens <= before.tokens


def test_sampling_is_seeded(session):
    prompts = [session.prompt_ids(text) for text in TEXTS]
    kwargs = {"temperature": 1.0, "top_p": 0.95}
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    first = [c.text for c in generate(session, prompts, 12, seed=1, **kwargs)]
    assert torch.equal(torch.rand(1), before)  # the caller's random state is left alone
    assert first == [c.text for c in generate(session, prompts, 12, seed=1, **kwargs)]
    assert first != [c.text for c in generate(session, prompts, 12, seed=2, **kwargs)]


def test_by_length_covers_everything_within_budget():
    lengths = [3, 9, 1, 9, 30, 4]
    batches = list(by_length(lengths, 20, max_rows=3))
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert batches[0] == [4]
    for batch in batches:
        assert len(batch) <= 3
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= 20
