"""What serving costs: requests at stated concurrencies, by a serving engine or by transformers in lock-step batches.

A server's joules are those of a workload: prompts of their own lengths, answers as long as the model makes them. A
student that answers longer pays for it, so J/answer stands beside J/token (which divides by generated tokens, prompts
and idle power of the card included). vLLM runs as the stage's child and is metered with it.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ..config.evaluation import Inference
from ..data.generated import evaluation_items
from ..errors import UserError
from ..teacher.generation.jobs import Prompt
from ..teacher.generation.transformers_engine import Sampling, TransformersEngine
from ..teacher.generation.vllm_engine import VllmEngine, served_model
from .generate import thinking_tokens
from .result import Result
from .session import Session

REQUESTS = 64
CONCURRENCY = (1, 8, 32, "saturated")
#: Positions that an engine makes room for where no workload states them.
MAX_LENGTH = 8192
WARM_UP = 2  # requests
GREEDY = {"temperature": 0.0, "top_p": 1.0}

#: answers(prompts, concurrency) → per prompt: ids, and first_s and total_s where the engine tells them.
Answers = Callable[[list[Prompt], int], list[dict[str, Any]]]


def serving(session: Session, name: str, params: Inference) -> tuple[Result, list[dict[str, Any]]]:
    """Rows of ``inference.parquet``, three a concurrency.

    ``prefill``: the same prompts, one token each. ``served``: prompts and answers together; J/token divides by
    generated tokens. ``decode``: their difference, marked ``derived``. Whole passes repeat until ``min_seconds``.
    """
    prompts, fixed = workload(session, params)
    levels = [(len(prompts), True) if c == "saturated" else (c, False) for c in params.concurrency or CONCURRENCY]
    most = max(level for level, _ in levels)
    room = max(len(prompt.prompt_ids) + prompt.room for prompt in prompts)
    rows, facts = [], {}
    with _engine(session, params, room, most, fixed) as (answers, told):
        facts |= told
        warm = answers(prompts[:WARM_UP], WARM_UP)
        _count(session, prompts[:WARM_UP], warm)
        for level, saturated in levels:
            rows += _measure(session, name, params, prompts, level, saturated, answers)
    return Result([], None, None, None, None, facts), rows


def workload(session: Session, params: Inference) -> tuple[list[Prompt], bool]:
    """(requests, whether every answer takes all of its room). Raises UserError for a file that is not a workload."""
    count, room = params.requests or REQUESTS, params.new_tokens
    named = params.workload
    if named is None:
        ids = fixed_prompts(session, count, params.prompts, params.prompt_tokens)
        return [Prompt(str(i), tuple(row), "", room) for i, row in enumerate(ids)], True
    if named == "held_out":
        texts: list[Any] = [item["prompt"] for item in evaluation_items("gold", count, params.seed)]
    else:
        texts = read_prompts(Path(named).expanduser(), count)
    return [Prompt(str(i), tuple(session.prompt_ids(text)), "", room) for i, text in enumerate(texts)], False


#: What the prompts of stated lengths are cut from: real text, no two prompts alike, none padded.
TEXT = (
    "A library lends books to everyone who lives in the town. Each morning its doors open at nine, and the first "
    "readers come in from the square with wet coats and questions. Explain in plain words how such a place is run, "
    "who pays for it, what it costs in a year, and why a small town may want one. Begin with the building, go on to "
    "the people who work there, and end with the readers. "
)


def fixed_prompts(session: Session, rows: int, prompts: int, length: int) -> list[list[int]]:
    """``rows`` prompts of ``length`` tokens: the text, repeated, from its i-th token on, again from the first where
    ``prompts`` of them run out."""
    base = session.encode(TEXT * 2)
    tokens = base * ((length + prompts) // len(base) + 1)
    return [tokens[i % prompts : i % prompts + length] for i in range(rows)]


def read_prompts(path: Path, count: int) -> list[Any]:
    """The first ``count`` rows' ``prompt`` (text) or ``messages`` of a JSONL file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"evaluation: workload {path}: cannot be read ({error})") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or len(found) == count:
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise UserError(f"evaluation: workload {path}, row {number}: not JSON") from None
        text = row.get("prompt") or row.get("messages") if isinstance(row, dict) else None
        if not text:
            raise UserError(f"evaluation: workload {path}, row {number}: neither prompt nor messages")
        found.append(text)
    if not found:
        raise UserError(f"evaluation: workload {path}: no row")
    return found


@contextlib.contextmanager
def _engine(
    session: Session, params: Inference, length: int, concurrency: int, fixed: bool
) -> Iterator[tuple[Answers, dict[str, Any]]]:
    """The engine's answers, and what is to be known of it."""
    if params.engine == "vllm":
        options = {"enable_prefix_caching": False} | (params.engine_options or {})
        with vllm(session, length, concurrency, options) as engine:
            yield (
                lambda prompts, level: engine.serve(prompts, 0, concurrency=level, fixed=fixed),
                described(engine),
            )
        return

    def in_batches(prompts: list[Prompt], level: int) -> list[dict[str, Any]]:
        engine = TransformersEngine(session.model, session.tokenizer, Sampling(**GREEDY, batch_size=level))
        return [{"ids": answer.ids} for answer in engine.answer(prompts, 0)]

    yield in_batches, {"engine": "transformers (batches in lock step, eager)"}


@contextlib.contextmanager
def vllm(
    session: Session, length: int | None, concurrency: int, options: dict[str, Any] | None = None
) -> Iterator[VllmEngine]:
    """The session's model in a vLLM of its own, its start a phase of its own (``load``)."""
    model, inputs = session.source
    work = session.scratch("vllm")
    with session.phase("load"):
        served = served_model(model, inputs, work, session.tokenizer)
        most = _positions(served.name, served.revision)
        length = min(MAX_LENGTH, most or MAX_LENGTH) if length is None else length
        if most is not None and length > most:
            raise UserError(f"evaluation: requests of {length} tokens, the model has {most} positions")
        engine = VllmEngine(
            served, work, GREEDY, max_length=length, dtype=session.dtype, concurrency=concurrency, options=options
        )
    try:
        yield engine
    finally:
        engine.close()


def _positions(name: str, revision: str | None) -> int | None:
    _, options = (name, {"revision": revision}) if revision else (name, {})
    config = AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None


def described(engine: VllmEngine) -> dict[str, Any]:
    """For the sidecar: the engine's settings and the versions of its own environment."""
    settings = {key: value for key, value in engine.settings.items() if key not in ("model", "revision")}
    versions = {f"engine_{key.replace('-', '_')}": value for key, value in engine.process.versions.items()}
    return {"engine": "vllm", "engine_settings": json.dumps(settings, sort_keys=True), **versions}


def _measure(
    session: Session,
    name: str,
    params: Inference,
    prompts: list[Prompt],
    level: int,
    saturated: bool,
    answers: Answers,
) -> list[dict[str, Any]]:
    least = params.min_seconds
    first = [Prompt(prompt.id, prompt.prompt_ids, prompt.prompt, 1) for prompt in prompts]
    key = f"{name}:{{}}:{'saturated' if saturated else level}"
    with session.phase(key.format("prefill")) as prefill:
        filled, fills = _passes(lambda: answers(first, level), least)
    _count(session, first, filled, fills)
    with session.phase(key.format("served")) as whole:
        made, passes = _passes(lambda: answers(prompts, level), least)
    _count(session, prompts, made, passes)
    asked = sum(len(prompt.prompt_ids) for prompt in prompts)
    generated = sum(len(answer["ids"]) for answer in made)
    common = {
        "batch_size": level,
        "saturated": saturated,
        "engine": params.engine or "transformers",
        "workload": params.workload or f"{params.prompt_tokens} + {params.new_tokens} tokens",
        "requests": len(prompts),
        "prompt_tokens": asked,
    }
    thinking = sum(thinking_tokens(session, answer["ids"]) for answer in made)
    served = _row(whole, passes, generated, common) | {
        "phase": "served",
        "generated_tokens": generated,
        "thinking_tokens": thinking,
        "j_per_answer": None if whole.joules is None else whole.joules / (passes * len(prompts)),
        "first_token_s": _median(made, "first_s"),
        "answer_s": _median(made, "total_s"),
    }
    return [
        _row(prefill, fills, asked, common) | {"phase": "prefill"},
        served,
        _decode(prefill, fills, whole, passes, generated - len(prompts), common),
    ]


def _row(spent: Any, passes: int, tokens: int, common: dict[str, Any]) -> dict[str, Any]:
    total = passes * tokens
    known = spent.joules is not None and total > 0
    return common | {
        "tokens": total,
        "seconds": spent.seconds,
        "joules": spent.joules,
        "j_per_token": spent.joules / total if known else None,
        "tok_s": total / spent.seconds if spent.seconds > 0 else None,
        "source": spent.source or ("unavailable" if spent.joules is None else None),
        "reason": None if known else spent.reason or "no token was generated",
        "repeats": passes,
    }


def _decode(prefill: Any, fills: int, whole: Any, passes: int, tokens: int, common: dict[str, Any]) -> dict[str, Any]:
    """A pass's decoding: its joules and seconds less those of its prefill. Tokens: all but each answer's first."""
    seconds = whole.seconds / passes - prefill.seconds / fills
    unknown = whole.joules is None or prefill.joules is None
    joules = None if unknown else whole.joules / passes - prefill.joules / fills
    reason = None
    if unknown:
        reason = whole.reason or prefill.reason
    elif tokens <= 0:
        reason = "no answer is longer than a token"
    elif joules <= 0 or seconds <= 0:
        reason = "the prefill took as much as the whole: too little work to tell them apart"
    known = reason is None
    return common | {
        "phase": "decode",
        "derived": True,
        "tokens": max(tokens, 0),
        "seconds": max(seconds, 0.0),
        "joules": joules if known else None,
        "j_per_token": joules / tokens if known else None,
        "tok_s": tokens / seconds if known else None,
        "source": whole.source if known else "unavailable",
        "reason": reason,
        "repeats": passes,
    }


def _passes(work: Callable[[], list[dict[str, Any]]], least: float) -> tuple[list[dict[str, Any]], int]:
    """Run ``work`` until ``least`` seconds have passed, at least once: the last pass's answers, and how many."""
    start, times = time.perf_counter(), 0
    while True:
        made = work()
        times += 1
        if time.perf_counter() - start >= least:
            return made, times


def _count(session: Session, prompts: list[Prompt], made: list[dict[str, Any]], passes: int = 1) -> None:
    session.count(
        processed=passes * sum(len(prompt.prompt_ids) for prompt in prompts),
        generated=passes * sum(len(answer["ids"]) for answer in made),
    )
    if session.model is None:  # another process made them
        session.served([len(p.prompt_ids) for p in prompts], [len(answer["ids"]) for answer in made], passes)


def _median(made: list[dict[str, Any]], key: str) -> float | None:
    known = [answer[key] for answer in made if key in answer]
    return statistics.median(known) if known else None
