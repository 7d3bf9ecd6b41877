"""Multiple choice by likelihood: how much of the options' probability the right one has, above chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..config.evaluation import Choice
from ..data.generated import evaluation_items
from .batching import by_length, pad
from .prefix import Prefixed, common_length
from .result import Item, Result, summarise
from .session import Session


def choice(session: Session, name: str, params: Choice) -> Result:
    """Mean of (p − 1/k)/(1 − 1/k), p the right option's share of the k options' probability: 0 at chance, 1 at best.

    Graded, so that 150 items tell two small models apart where accuracy would not. An item below chance is negative.
    """
    items = evaluation_items("choice", params.items, params.seed)
    options = [item["choices"] for item in items]
    with session.phase(name):
        scores = log_likelihoods(session, [item["prompt"] for item in items], options)
    rows = []
    for item, texts, values in zip(items, options, scores, strict=True):
        probabilities = softmax([value for value, _ in values])
        right = item["right"]
        best = max(range(len(texts)), key=probabilities.__getitem__)
        extra = {
            "probability": probabilities[right],
            "right": best == right,
            "log_likelihoods": [value for value, _ in values],
        }
        graded = above_chance(probabilities[right], len(texts))
        tokens = sum(n for _, n in values)
        rows.append(Item(str(item["id"]), item["prompt"], texts[right], texts[best], graded, tokens, extra))
    accuracy = sum(row.extra["right"] for row in rows) / len(rows)
    return summarise(rows, 0.0, accuracy=accuracy)


def above_chance(probability: float, options: int) -> float:
    """A probability among ``options`` on a scale from 0 (chance) to 1."""
    chance = 1.0 / options
    return (probability - chance) / (1.0 - chance)


def softmax(values: Sequence[float]) -> list[float]:
    """Probabilities from log-likelihoods."""
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def log_likelihoods(
    session: Session, prompts: Sequence[str], options: Sequence[Sequence[str]]
) -> list[list[tuple[float, int]]]:
    """(log-likelihood in nats, tokens) of each option as what the answer to its prompt begins with.

    What all options of a prompt begin with is given with the prompt: its likelihood is the same for all of them and
    cancels in their shares, so it is neither scored nor counted, and the model reads it once.
    """
    prompt_ids, tails = [], []
    for prompt, texts in zip(prompts, options, strict=True):
        rows = [session.encode(text) for text in texts]
        same = common_length(rows)
        prompt_ids.append(session.prompt_ids(prompt) + rows[0][:same])
        tails.append([row[same:] for row in rows])
    return score_continuations(session, prompt_ids, tails)


def score_continuations(
    session: Session, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
) -> list[list[tuple[float, int]]]:
    """Log-likelihood (nats) and length of each continuation of each prompt, all given as tokens.

    A prompt goes through the model once: its keys and values are shared by its continuations.
    """
    if any(not option for row in continuations for option in row):
        raise ValueError("a continuation has no token")
    out: list[list[tuple[float, int]]] = [[] for _ in prompts]
    widths = [len(p) + sum(len(o) for o in row) for p, row in zip(prompts, continuations, strict=True)]
    with torch.inference_mode():
        prefixed = Prefixed(session, prompts)
        for batch in by_length([width - prefixed.length for width in widths], session.batch_tokens):
            totals = _score_batch(session, prefixed, [prompts[i] for i in batch], [continuations[i] for i in batch])
            for i, values in zip(batch, totals, strict=True):
                out[i] = [(value, len(o)) for value, o in zip(values, continuations[i], strict=True)]
    return out


def _score_batch(session: Session, prefixed: Prefixed, prompts, continuations) -> list[list[float]]:
    """Log-likelihood of each continuation. Prompts are padded left, so that all continuations start at one column."""
    device = session.device
    flat = [option for row in continuations for option in row]
    owner = torch.tensor([i for i, row in enumerate(continuations) for _ in row], device=device)
    first = torch.tensor([option[0] for option in flat], device=device)
    # The last token of a continuation predicts nothing that is scored, so it is not fed; one-token ones feed none.
    fed = [i for i, option in enumerate(flat) if len(option) > 1]
    hidden, mask, cache = prefixed.run(prompts, left=True, keep=bool(fed))
    last = hidden[:, -1]
    _, normaliser = session.head.summary(last)
    total = session.head.logits_of(last[owner], first) - normaliser[owner]
    if fed:
        rows = torch.tensor(fed, device=device)
        ids, own_mask = pad([flat[i][:-1] for i in fed], session.pad_id, device)
        session.count(own_mask)
        cache.reorder_cache(owner[rows])  # one copy of its prompt's keys and values for each continuation
        mask = mask[owner[rows]]
        steps = torch.arange(ids.shape[1], device=device)
        hidden = session.decoder(
            input_ids=ids,
            attention_mask=torch.cat([mask, own_mask], dim=1),
            position_ids=mask.sum(-1)[:, None] + steps[None, :],
            use_cache=True,
            **{prefixed.argument: cache},
        ).last_hidden_state
        row, column = own_mask.bool().nonzero(as_tuple=True)
        targets = torch.tensor([token for i in fed for token in flat[i][1:]], device=device)
        picked = hidden[row, column]
        _, normaliser = session.head.summary(picked)
        gains = session.head.logits_of(picked, targets) - normaliser
        total = total.index_add(0, rows[row], gains)
    values = iter(total.tolist())
    return [[next(values) for _ in row] for row in continuations]
