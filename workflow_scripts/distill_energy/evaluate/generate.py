"""Batched generation for benchmarks: left padding, stop strings, maximum length, seeded sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from ..models.packing import ignores_pads
from ..teacher.generation.jobs import Prompt
from .batching import by_length, pad
from .session import THINKING_START, Session


@dataclass(frozen=True)
class Completion:
    """A generated text without its thinking and its stop string; ``tokens`` counts every token that the model made,
    ``thinking`` those up to the one that ends its thinking."""

    text: str
    tokens: int
    finish: str  # stop | length
    thinking: int = 0


def generate(
    session: Session,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    stop: Sequence[str] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_rows: int = 32,
) -> list[Completion]:
    """Continue each prompt (token ids) until the end of turn, a stop string, or ``max_new_tokens``.

    ``temperature`` 0 is greedy. Sampling is seeded by ``seed`` and the batch, so the same prompts in the same batches
    give the same texts. Prompts are batched by length: padding costs energy and no answer.
    """
    if session.engine is not None:
        return _by_engine(session, prompts, max_new_tokens, stop, temperature, top_p, seed)
    sampled = temperature > 0
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=sampled,
        temperature=temperature if sampled else None,
        top_p=top_p if sampled else None,
        top_k=0 if sampled else None,
        eos_token_id=session.stop_ids,
        pad_token_id=session.pad_id,
        bos_token_id=session.tokenizer.bos_token_id,
    )
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    if len(prompts) > 1 and not ignores_pads(session.model):
        batch_rows = 1
    out: dict[int, Completion] = {}
    for number, batch in enumerate(by_length(lengths, session.cache_tokens, batch_rows)):
        ids, mask = pad([prompts[i] for i in batch], session.pad_id, session.device, left=True)
        width = ids.shape[1]
        extra = StoppingCriteriaList([_StopStrings(session.tokenizer, width, stop)]) if stop else None
        devices = [session.device] if session.device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed * 1_000_003 + number)
            made = session.model.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, stopping_criteria=extra
            )[:, width:].tolist()
        session.count(mask)
        for i, tokens in zip(batch, made, strict=True):
            out[i] = _completion(session, tokens, stop)
            session.count(generated=out[i].tokens, padding=len(tokens) - out[i].tokens)
    return [out[i] for i in range(len(prompts))]


def _completion(session: Session, tokens: list[int], stop: Sequence[str]) -> Completion:
    """The text up to the end of turn and up to the first stop string."""
    ends = [i for i, token in enumerate(tokens) if token in session.stop_ids]
    kept = tokens[: ends[0]] if ends else tokens
    thought = thinking_tokens(session, kept)
    said = kept[thought:]
    text = session.tokenizer.decode(said, skip_special_tokens=True)
    text = text.lstrip("\n") if thought else text
    cut = min((at for at in (text.find(s) for s in stop) if at >= 0), default=None)
    if cut is not None:
        count = thought + _first_reach(session.tokenizer, said, stop)
        return Completion(text[:cut], count, "stop", thought)
    return Completion(text, len(kept) + bool(ends), "stop" if ends else "length", thought)


def thinking_tokens(session: Session, tokens: Sequence[int]) -> int:
    """How many of an answer's tokens are thinking: up to the token that ends it, or all where it never ended."""
    end = session.thinking_end
    if end is None:
        return 0
    if end in tokens:
        return len(tokens) - tokens[::-1].index(end)
    opened = session.tokenizer.get_vocab().get(THINKING_START)
    return len(tokens) if opened is not None and opened in tokens[:2] else 0


def _by_engine(
    session: Session,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: Sequence[str],
    temperature: float,
    top_p: float,
    seed: int,
) -> list[Completion]:
    """As ``generate``, by the serving engine; it batches as it likes."""
    asked = [Prompt(str(i), tuple(ids), "", max_new_tokens) for i, ids in enumerate(prompts)]
    sampling = {"temperature": temperature, "top_p": top_p}
    done = [
        _completion(session, list(found["ids"]), stop)
        for found in session.engine.serve(asked, seed, stop=stop, sampling=sampling)
    ]
    session.count(processed=sum(map(len, prompts)), generated=sum(one.tokens for one in done))
    session.served([len(prompt) for prompt in prompts], [one.tokens for one in done])
    return done


def _first_reach(tokenizer, tokens: list[int], stop: Sequence[str]) -> int:
    """How many tokens it took until a stop string was whole."""
    low, high = 1, len(tokens)
    while low < high:
        middle = (low + high) // 2
        text = tokenizer.decode(tokens[:middle], skip_special_tokens=True)
        low, high = (low, middle) if any(s in text for s in stop) else (middle + 1, high)
    return low


class _StopStrings:
    """Stopping criterion by row: looks for the stop strings in the text of the last few tokens."""

    def __init__(self, tokenizer, prompt_width: int, stop: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.start = prompt_width
        self.stop = tuple(stop)
        # A token is one byte at least, so a stop string ends within this many tokens.
        self.window = max(len(s.encode("utf-8")) for s in stop) + 4

    def __call__(self, input_ids, scores, **kwargs):
        tails = input_ids[:, max(self.start, input_ids.shape[1] - self.window) :]
        texts = self.tokenizer.batch_decode(tails, skip_special_tokens=True)
        hits = [any(s in text for s in self.stop) for text in texts]
        return torch.tensor(hits, dtype=torch.bool, device=input_ids.device)
