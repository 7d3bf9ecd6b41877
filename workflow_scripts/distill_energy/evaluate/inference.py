"""Inference cost: prefill and decode measured apart on fixed prompts at stated batch sizes. The j of T*."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from ..config.evaluation import Inference
from ..store.atomic import write_parquet
from .prefix import cache_argument, cache_of, is_plain
from .result import Result
from .serving import fixed_prompts, serving
from .session import Session


def inference(session: Session, name: str, params: Inference) -> tuple[Result, list[dict[str, Any]]]:
    """Rows of ``inference.parquet``. Decoding is greedy and never ends early, so every model does the same work.

    A phase repeats whole passes until ``min_seconds``; its joules divide by the tokens of all of them. Prefill counts
    prompt tokens, decode the tokens generated after the first, which the prefill yields.
    """
    if params.engine == "vllm" or params.workload:
        return serving(session, name, params)
    rows = []
    with torch.inference_mode():
        for batch_size in params.batch_sizes:
            ids = prompt_batch(session, batch_size, params.prompts, params.prompt_tokens)
            rows += _measure(session, name, ids, params)
    return Result([], None, None, None), rows


def prompt_batch(session: Session, batch_size: int, prompts: int, length: int):
    """Token ids (batch_size, length) of the fixed prompts (see ``serving.fixed_prompts``)."""
    return torch.tensor(fixed_prompts(session, batch_size, prompts, length), device=session.device)


def _measure(session: Session, name: str, ids, params: Inference) -> list[dict[str, Any]]:
    batch, length = ids.shape
    steps, least = params.new_tokens, params.min_seconds
    cache, first = _prefill(session, ids)  # also warms up
    _decode(session, _fresh(cache, length), first, length, min(steps, 2))
    session.count(processed=batch * length, generated=batch * (1 + min(steps, 2)))
    with session.phase(f"{name}:prefill:{batch}") as prefill:
        passes = _repeat(session, lambda: _prefill(session, ids), least)
    session.count(processed=passes * batch * length, generated=passes * batch)
    cache, first = _prefill(session, ids)
    session.count(processed=batch * length, generated=batch)
    with session.phase(f"{name}:decode:{batch}") as decode:
        repeats = _repeat(session, lambda: _decode(session, _fresh(cache, length), first, length, steps), least)
    session.count(generated=repeats * batch * steps)
    return [
        _row(batch, "prefill", passes * batch * length, passes, prefill),
        _row(batch, "decode", repeats * batch * steps, repeats, decode),
    ]


def _repeat(session: Session, work, least: float) -> int:
    """Run ``work`` until ``least`` seconds have passed, at least once; the number of times."""
    start, times = time.perf_counter(), 0
    while True:
        work()
        session.synchronise()
        times += 1
        if time.perf_counter() - start >= least:
            return times


def _prefill(session: Session, ids):
    """(cache, first new token of each row) of a batch of prompts."""
    out = session.model(input_ids=ids, use_cache=True, logits_to_keep=1)
    return cache_of(out), out.logits[:, -1].argmax(dim=-1, keepdim=True)


def _decode(session: Session, cache, token, length: int, steps: int) -> None:
    """``steps`` greedy steps from a cache of ``length`` positions; the end-of-turn token is like any other."""
    argument = cache_argument(session.model)
    for step in range(steps):
        position = torch.full_like(token, length + step)
        out = session.model(input_ids=token, position_ids=position, use_cache=True, **{argument: cache})
        token = out.logits[:, -1].argmax(dim=-1, keepdim=True)


def _fresh(cache, length: int):
    """The cache as the prefill left it: cropped in place, or a copy where its kind cannot be cropped."""
    if not is_plain(cache):
        return copy.deepcopy(cache)
    if cache.get_seq_length() > length:
        cache.crop(length - cache.get_seq_length())  # a negative number: tokens to remove
    return cache


def _row(batch: int, phase: str, tokens: int, repeats: int, spent) -> dict[str, Any]:
    known = spent.joules is not None and tokens > 0
    return {
        "batch_size": batch,
        "phase": phase,
        "tokens": tokens,
        "seconds": spent.seconds,
        "joules": spent.joules,
        "j_per_token": spent.joules / tokens if known else None,
        "tok_s": tokens / spent.seconds if spent.seconds > 0 else None,
        "source": spent.source or ("unavailable" if spent.joules is None else None),
        "reason": None if known else spent.reason,
        "repeats": repeats,
    }


def write_inference(path: Path, rows: list[dict[str, Any]]) -> None:
    """``inference.parquet``; empty where the suite measures no inference."""
    schema = pa.schema(
        [
            ("batch_size", pa.int64()),
            ("phase", pa.string()),
            ("tokens", pa.int64()),
            ("seconds", pa.float64()),
            ("joules", pa.float64()),
            ("j_per_token", pa.float64()),
            ("tok_s", pa.float64()),
            ("source", pa.string()),
            ("reason", pa.string()),
            ("repeats", pa.int64()),
            ("engine", pa.string()),
            ("workload", pa.string()),
            ("saturated", pa.bool_()),
            ("requests", pa.int64()),
            ("prompt_tokens", pa.int64()),
            ("generated_tokens", pa.int64()),
            ("thinking_tokens", pa.int64()),
            ("j_per_answer", pa.float64()),
            ("first_token_s", pa.float64()),
            ("answer_s", pa.float64()),
            ("derived", pa.bool_()),
        ]
    )
    write_parquet(path, pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema))
