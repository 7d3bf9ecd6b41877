"""MT-Bench-101: 13 tasks of dialogues; every judged turn is answered on the gold history and graded from 1 to 10.

A dialogue's score is the minimum over its judged turns, a task's the mean over its dialogues, the benchmark's the mean
over tasks (Bai et al. 2024, arXiv 2402.14762).
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.evaluation import MtBench101
from ..errors import UserError
from . import judges
from .generate import Completion, generate
from .result import Item, Result, mean_and_stderr
from .rubrics import FIRST_TURN_SKIPPED, RUBRICS, WITH_REFERENCE
from .session import Session

GRADE = re.compile(r"\[\[\s*(10|[1-9])(?:\.0+)?\s*\]\]")
FLOOR = 1.0
TEMPERATURE = 0.8  # of the judge, as published


@dataclass(frozen=True)
class Turn:
    """A judged turn: the gold turns before it, its request and the gold answer."""

    task: str
    dialogue: str
    number: int  # from 1
    history: tuple[tuple[str, str], ...]
    request: str
    gold: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation that the model continues."""
        said = []
        for user, bot in self.history:
            said += [{"role": "user", "content": user}, {"role": "assistant", "content": bot}]
        return [*said, {"role": "user", "content": self.request}]


def mt_bench_101(session: Session, name: str, params: MtBench101) -> Result:
    """Mean over tasks of the mean over dialogues of the minimum grade. Chance: 1, the worst grade."""
    judge_params = params.judge
    prompt = judges.template("turns", judge_params.prompt_version)
    turns = load(params, name)
    with session.phase(name):
        ids = [session.prompt_ids(turn.messages) for turn in turns]
        answers = generate(session, ids, params.max_new_tokens, seed=params.seed)
    texts = [judge_prompt(prompt, turn, answer.text) for turn, answer in zip(turns, answers, strict=True)]
    with judges.opened(session, judge_params) as judge:
        grade = _by_endpoint if isinstance(judge, judges.Endpoint) else _by_likelihood
        grades = grade(judge, texts, params.seed)
    facts = judges.facts(session, judge_params, judge)
    # A dialogue's score is its minimum: without one of its grades it has none.
    ungraded = {turn.dialogue for turn, grade in zip(turns, grades, strict=True) if grade is None}
    judges.judged(judge_params, grades, facts)
    kept = [i for i, turn in enumerate(turns) if turn.dialogue not in ungraded]
    if not kept:
        raise RuntimeError(f"judge {judge_params.model}: no dialogue has all of its grades")
    turns, answers, grades = ([values[i] for i in kept] for values in (turns, answers, grades))
    items = dialogues(turns, answers, grades)
    tasks = by_task(items)
    notes = f"own judge prompt {judge_params.prompt_version}, judge {judge_params.model}"
    if judge_params.kind == "local":
        notes += "; a likelihood judge is a proxy, outside Q"
    if set(tasks) != set(RUBRICS):
        notes += f"; {len(tasks)} of {len(RUBRICS)} tasks"
    means = [mean_and_stderr(scores) for scores in tasks.values()]
    score = math.fsum(m for m, _ in means) / len(means)
    known = all(se is not None for _, se in means)
    stderr = math.sqrt(math.fsum(se**2 for _, se in means)) / len(means) if known else None
    facts |= {f"task_{task}": mean for task, (mean, _) in zip(tasks, means, strict=True)}
    return Result(items, score, stderr, FLOOR, notes, {**facts, "judged_turns": len(turns)})


def load(params: MtBench101, name: str) -> list[Turn]:
    """The judged turns of the data file, all of them or those of ``limit`` dialogues drawn evenly over the tasks."""
    if not params.data:
        raise UserError(f"evaluation.benchmarks.{name}.data: needs the JSON-lines file of MT-Bench-101")
    path = Path(params.data).expanduser()
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON lines ({error})") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or row.get("task") not in RUBRICS or not row.get("history"):
            raise UserError(f"{path}: row {number} needs a task of {', '.join(RUBRICS)} and a history")
    return [turn for row in draw(rows, params.limit, params.seed) for turn in judged_turns(row)]


def draw(rows: list[dict[str, Any]], limit: int | None, seed: int) -> list[dict[str, Any]]:
    """``limit`` dialogues, task after task in turn; within a task a seeded order."""
    if limit is None or limit >= len(rows):
        return rows
    rng = random.Random(seed)
    queues: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        queues.setdefault(row["task"], []).append(index)
    for queue in queues.values():
        rng.shuffle(queue)
    chosen: list[int] = []
    while len(chosen) < limit:
        for queue in queues.values():
            if queue and len(chosen) < limit:
                chosen.append(queue.pop())
    return [rows[i] for i in sorted(chosen)]


def judged_turns(row: dict[str, Any]) -> list[Turn]:
    """The turns of a dialogue that are judged: all, or all but the first by task."""
    history = [(turn["user"], turn["bot"]) for turn in row["history"]]
    first = 1 if row["task"] in FIRST_TURN_SKIPPED else 0
    name = f"{row['task']}-{row['id']}"
    return [
        Turn(row["task"], name, i + 1, tuple(history[:i]), history[i][0], history[i][1])
        for i in range(first, len(history))
    ]


def judge_prompt(prompt: str, turn: Turn, answer: str) -> str:
    """What the judge reads about one turn."""
    history = (
        "\n\n".join(f"User: {judges.quoted(u)}\nAssistant: {judges.quoted(b)}" for u, b in turn.history) or "(none)"
    )
    reference = f"\n[{judges.REFERENCE}]\n{judges.quoted(turn.gold)}\n" if turn.task in WITH_REFERENCE else ""
    return judges.fill(
        prompt,
        rubric=RUBRICS[turn.task],
        history=history,
        request=judges.quoted(turn.request),
        answer=judges.quoted(answer.strip()) or "(the assistant said nothing)",
        reference=reference,
    )


def read_grade(text: str) -> float | None:
    """The last grade in double brackets, 1 to 10; None if there is none."""
    found = GRADE.findall(text)
    return float(found[-1]) if found else None


def _by_endpoint(judge: judges.Endpoint, texts: Sequence[str], seed: int) -> list[float | None]:
    """Grades; a reply without a grade is asked for again, reseeded; None where no reply of three has one."""

    temperature = TEMPERATURE if judge.temperature is None else judge.temperature

    def one(text: str) -> float | None:
        for ask in range(judges.ASKS):
            reply = judge.ask(text, max_tokens=512, temperature=temperature, seed=seed + ask)
            grade = read_grade(reply.text)
            if grade is not None:
                return grade
        return None

    return judge.many(one, texts)


def _by_likelihood(judge: judges.LocalModel, texts: Sequence[str], seed: int) -> list[float]:
    """The expected grade under the model's likelihoods of the ten grades."""
    answers = [f"[[{grade}]]" for grade in range(1, 11)]
    shares = judge.shares(texts, answers)
    return [math.fsum(grade * share for grade, share in enumerate(row, 1)) for row in shares]


def dialogues(turns: Sequence[Turn], answers: Sequence[Completion], grades: Sequence[float]) -> list[Item]:
    """One item a dialogue: its minimum grade, and the turn that got it."""
    grouped: dict[str, list[int]] = {}
    for index, turn in enumerate(turns):
        grouped.setdefault(turn.dialogue, []).append(index)
    items = []
    for dialogue, indices in grouped.items():
        worst = min(indices, key=lambda i: grades[i])
        items.append(
            Item(
                dialogue,
                "\n\n".join(turns[i].request for i in indices),
                turns[worst].gold,
                answers[worst].text,
                grades[worst],
                sum(answers[i].tokens for i in indices),
                {
                    "task": turns[worst].task,
                    "worst_turn": turns[worst].number,
                    "grades": [grades[i] for i in indices],
                    "answers": [answers[i].text for i in indices],
                },
            )
        )
    return items


def by_task(items: Sequence[Item]) -> dict[str, list[float]]:
    """Task → its dialogues' scores, in the published order of tasks."""
    return {
        task: [item.score for item in items if item.extra["task"] == task]
        for task in RUBRICS
        if any(item.extra["task"] == task for item in items)
    }
