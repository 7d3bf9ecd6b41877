"""AlpacaEval 2's protocol with the judge that the configuration names: win rate against reference answers.

The published leaderboard's length-controlled rate belongs to its own judge and baseline. With another judge we report
the plain win rate as the score and, under a name of its own, a correction for length alone.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config.evaluation import AlpacaEval, ReferenceAnswers
from ..errors import UserError
from . import alpaca_package, judges
from .generate import generate
from .result import Item, Result, summarise
from .session import Session


@dataclass
class Duel:
    """An instruction that the model answers, and the answer that its own is held against."""

    item_id: str
    instruction: str
    prompt_ids: list[int]
    reference: str


def alpaca_eval(session: Session, name: str, params: AlpacaEval) -> Result:
    """Win rate against the reference's answers, see ``win_rate``."""
    pairs = load(params, name)
    with session.phase(name):
        duels = [
            Duel(f"alpaca-{number}", instruction, session.prompt_ids(instruction), reference)
            for number, (instruction, reference) in enumerate(pairs)
        ]
    return win_rate(session, name, params, duels)


def win_rate(session: Session, name: str, params: AlpacaEval | ReferenceAnswers, duels: list[Duel]) -> Result:
    """Mean probability that the judge prefers the model's answer to the reference's. Chance: 0 (it answers nothing).

    An endpoint sees each pair once, in an order drawn by the seed; a local judge sees both orders, whose mean has no
    position bias.
    """
    judge_params = params.judge
    version, folder = judge_params.prompt_version, session.scratch(name)
    packaged = version == alpaca_package.PROMPT_VERSION
    if packaged and judge_params.kind != "openai":
        raise UserError(f"evaluation.benchmarks.{name}.judge: the package alpaca_eval needs an endpoint (kind openai)")
    prompt = "" if packaged else judges.template("pairwise", version)
    with session.phase(name):
        answers = generate(session, [d.prompt_ids for d in duels], params.max_new_tokens, seed=params.seed)
    shown = [
        tuple(judges.quoted(text) for text in (duel.instruction, answer.text, duel.reference))
        for duel, answer in zip(duels, answers, strict=True)
    ]
    notes = f"own judge prompt {version}, judge {judge_params.model}: not the leaderboard's rate"
    controlled = None
    with judges.opened(session, judge_params) as judge:
        if packaged:
            wins, notes, controlled = alpaca_package.annotate(judge, shown, params.seed, folder)
        else:
            ask = _by_endpoint if isinstance(judge, judges.Endpoint) else _by_likelihood
            wins = ask(judge, prompt, shown, params.seed)
    facts = judges.facts(session, judge_params, judge)
    kept = judges.judged(judge_params, wins, facts)
    duels, answers, shown, wins = ([values[i] for i in kept] for values in (duels, answers, shown, wins))
    differences = [len(answer) - len(reference) for _, answer, reference in shown]
    if controlled is None:
        facts["length_only_win_rate"] = length_only_win_rate(wins, differences)
    else:
        facts["length_controlled_win_rate"] = controlled
    items = [
        Item(
            duel.item_id,
            duel.instruction,
            duel.reference,
            answer.text,
            win,
            answer.tokens,
            {"length_difference": difference, "finish": answer.finish},
        )
        for duel, answer, win, difference in zip(duels, answers, wins, differences, strict=True)
    ]
    if judge_params.kind == "local":
        notes += "; a likelihood judge is a proxy, outside Q"
    return summarise(items, 0.0, notes, **facts)


def read_list(path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """A JSON list or JSON lines of objects with the ``needed`` fields. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
        whole = text.lstrip().startswith("[")
        rows = json.loads(text) if whole else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    for number, row in enumerate(rows, 1):
        for field in needed:
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                raise UserError(f"{path}: row {number} has no text {field!r}")
    if not rows:
        raise UserError(f"{path}: has no row")
    return rows


def load(params: AlpacaEval, name: str) -> list[tuple[str, str]]:
    """(instruction, reference answer); ``data`` names the instructions where they are not all of the reference's."""
    if not params.reference:
        raise UserError(f"evaluation.benchmarks.{name}.reference: needs a JSON file of instruction and output")
    reference = read_list(Path(params.reference).expanduser(), ("instruction", "output"))
    outputs = {row["instruction"]: row["output"] for row in reference}
    instructions = list(outputs)
    if params.data:
        instructions = [row["instruction"] for row in read_list(Path(params.data).expanduser(), ("instruction",))]
        missing = [text for text in instructions if text not in outputs]
        if missing:
            raise UserError(f"{params.reference}: has no output for instruction {missing[0][:60]!r}")
    limit = params.limit
    if limit is not None and limit < len(instructions):
        kept = sorted(random.Random(params.seed).sample(range(len(instructions)), limit))
        instructions = [instructions[i] for i in kept]
    return [(text, outputs[text]) for text in instructions]


def _by_endpoint(judge: judges.Endpoint, prompt: str, shown, seed: int) -> list[float | None]:
    """The judge's preference for the model's answer, each pair in one order; None where no reply of three names one."""
    rng = random.Random(seed)
    swapped = [rng.random() < 0.5 for _ in shown]

    def one(job) -> float | None:
        (instruction, answer, reference), swap = job
        first, second = (reference, answer) if swap else (answer, reference)
        text = judges.fill(prompt, instruction=instruction, first=first, second=second)
        for ask in range(judges.ASKS):
            temperature = judge.temperature or (judges.RETRY_TEMPERATURE if ask else 0.0)
            reply = judge.ask(text, max_tokens=16, temperature=temperature, seed=seed + ask, logprobs=True)
            share = judges.preference(reply)
            if share is not None:
                return 1.0 - share if swap else share
        return None

    return judge.many(one, list(zip(shown, swapped, strict=True)))


def _by_likelihood(judge: judges.LocalModel, prompt: str, shown, seed: int) -> list[float]:
    """The mean of the preferences in both orders."""
    texts = []
    for instruction, answer, reference in shown:
        texts.append(judges.fill(prompt, instruction=instruction, first=answer, second=reference))
        texts.append(judges.fill(prompt, instruction=instruction, first=reference, second=answer))
    shares = judge.shares(texts, ["A", "B"])
    return [(shares[2 * i][0] + shares[2 * i + 1][1]) / 2 for i in range(len(shown))]


def length_only_win_rate(wins: Sequence[float], differences: Sequence[float], ridge: float = 1e-4) -> float:
    """Win rate at equal length: the logistic model of Dubois et al. 2024 (arXiv 2404.04475, eq. 2) without the
    instruction term, logit p = θ + φ·tanh(Δ/σ_Δ), fitted by Newton's method; the answer is σ(θ).

    ``differences`` are model minus reference in characters. ``ridge`` (on both coefficients, per item) keeps the fit
    finite where the judge is unanimous.
    """
    y = np.asarray(wins, dtype=float)
    delta = np.asarray(differences, dtype=float)
    spread = delta.std()
    x = np.stack([np.ones_like(y), np.tanh(delta / spread) if spread > 0 else np.zeros_like(y)], axis=1)
    beta = np.zeros(2)
    for _ in range(100):
        p = 1.0 / (1.0 + np.exp(-(x @ beta)))
        gradient = x.T @ (y - p) / len(y) - ridge * beta
        hessian = (x * (p * (1 - p))[:, None]).T @ x / len(y) + ridge * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        beta = beta + step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-12))  # Newton overshoots far from the optimum
        if np.abs(step).max() < 1e-10:
            break
    return 1.0 / (1.0 + math.exp(-beta[0]))
