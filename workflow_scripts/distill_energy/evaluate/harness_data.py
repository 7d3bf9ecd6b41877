"""Local benchmark files as tasks of lm-evaluation-harness: JSON lines, and a YAML that includes the harness's."""

from __future__ import annotations

import ast
import csv
import io
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError

GSM8K_SHOTS, MMLU_SHOTS = 5, 5  # as published


@dataclass
class LocalTask:
    """Tasks written to ``folder`` for the harness; ``shots`` is what their files allow."""

    folder: Path
    tasks: list[str]
    shots: int
    notes: list[str] = field(default_factory=list)


def builtin(*parts: str) -> Path:
    """A file of the harness's own tasks."""
    root = Path(find_spec("lm_eval").origin).parent / "tasks"
    path = root.joinpath(*parts)
    if not path.is_file():
        raise RuntimeError(f"lm-eval has no {path.relative_to(root)}")
    return path


def read_rows(path: Path, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of a JSON-lines or CSV file. Raises UserError naming file, row and field."""
    try:
        text = _decoded(path.read_bytes())
        if path.suffix == ".csv":
            # Spreadsheets in some languages write semicolons.
            delimiter = max(",;\t", key=text.partition("\n")[0].count)
            rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix or 'JSON lines'} ({error})") from None
    for number, row in enumerate(rows, 1):
        for name in needed:
            if not isinstance(row, dict) or row.get(name) is None:
                raise UserError(f"{path}: row {number} has no field {name!r}")
    if not rows:
        raise UserError(f"{path}: has no row")
    return rows


def _decoded(data: bytes) -> str:
    """UTF-8, with or without a mark; else Mac Roman, in which one subject of MMLU-Redux was exported."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("mac_roman")


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pick(rows: list[Any], limit: int | None, seed: int) -> list[Any]:
    """A seeded sample of ``limit`` rows, in their order."""
    if limit is None or limit >= len(rows):
        return rows
    chosen = sorted(random.Random(seed).sample(range(len(rows)), limit))
    return [rows[i] for i in chosen]


def write_task(folder: Path, name: str, include: Path, files: dict[str, Path], extra: dict[str, Any]) -> str:
    """Write the YAML of a task that is the included one on other files; its name."""
    config = {
        "include": str(include),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: str(path) for split, path in files.items()},
            "cache_dir": str(folder / "cache"),
        },
        **extra,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return name


def _find(path: Path, pattern: str, what: str) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob(pattern))
    if not found:
        raise UserError(f"{path}: no file {pattern} ({what})")
    return found[0]


def gsm8k(path: Path, folder: Path, limit: int | None, shots: int | None, seed: int) -> LocalTask:
    """``path``: the test file, or a folder with ``*gsm8k*test*.jsonl``. Examples of the prompt come from
    ``*gsm8k*train*.jsonl`` beside it.
    """
    test = _find(path, "*gsm8k*test*.jsonl", "GSM8K test rows")
    train = sorted(p for p in test.parent.glob("*gsm8k*train*.jsonl") if p != test)
    shots, notes = _shots("gsm8k", shots, GSM8K_SHOTS, bool(train), f"{test.parent}: no *gsm8k*train*.jsonl")
    needed = ("question", "answer")
    files = {"test": write_rows(folder / "test.jsonl", pick(read_rows(test, needed), limit, seed))}
    extra: dict[str, Any] = {"tag": None}
    if train:
        files["train"] = write_rows(folder / "train.jsonl", read_rows(train[0], needed))
    else:
        extra |= {"training_split": None, "fewshot_split": None}
    name = write_task(folder, "local_gsm8k", builtin("gsm8k", "gsm8k.yaml"), files, extra)
    return LocalTask(folder, [name], shots, notes)


def _shots(task: str, asked: int | None, published: int, possible: bool, why: str) -> tuple[int, list[str]]:
    """How many examples a prompt holds, and a note where that is not as published."""
    if possible:
        shots = published if asked is None else asked
    elif asked:
        raise UserError(f"evaluation: {task} with few_shot {asked} needs examples ({why})")
    else:
        shots = 0
    return shots, [] if shots == published else [f"{shots}-shot, published as {published}-shot"]


def ifeval(path: Path, folder: Path, limit: int | None, shots: int | None, seed: int) -> LocalTask:
    """``path``: the file of prompts, or a folder with ``*ifeval*.jsonl``."""
    if shots:
        raise UserError("evaluation: ifeval has no examples, few_shot must be 0")
    source = _find(path, "*ifeval*.jsonl", "IFEval prompts")
    rows = read_rows(source, ("key", "prompt", "instruction_id_list", "kwargs"))
    # Every row with the same keys: the reader infers one type for the column.
    keys = sorted({key for row in rows for item in row["kwargs"] for key in item}) or ["num_words"]
    whole = [{**row, "kwargs": [{k: item.get(k) for k in keys} for item in row["kwargs"]]} for row in rows]
    files = {"train": write_rows(folder / "prompts.jsonl", pick(whole, limit, seed))}
    name = write_task(folder, "local_ifeval", builtin("ifeval", "ifeval.yaml"), files, {})
    return LocalTask(folder, [name], 0)


def mmlu_row(row: dict[str, Any], path: Path, number: int) -> dict[str, Any]:
    """question, choices (four), answer (0 to 3), from a list or its text, a number or a letter."""
    choices, answer = row["choices"], row["answer"]
    try:
        choices = ast.literal_eval(choices) if isinstance(choices, str) else choices
        answer = "ABCD".index(answer) if isinstance(answer, str) and not answer.isdigit() else int(answer)
        if len(choices) != 4 or not 0 <= answer <= 3:
            raise ValueError
    except (ValueError, SyntaxError, TypeError):
        raise UserError(f"{path}: row {number}: needs four choices and an answer 0 to 3 or A to D") from None
    return {"question": row["question"], "choices": [str(c) for c in choices], "answer": answer}


def mmlu(path: Path, folder: Path, limit: int | None, shots: int | None, seed: int) -> LocalTask:
    """``path``: a file, or a folder with a file a subject (``mmlu_<subject>.csv`` or ``.jsonl``); the examples of the
    prompt come from the same names in its subfolder ``dev``. ``limit`` counts rows over all subjects, drawn evenly.
    """
    sources = [path] if path.is_file() else sorted(p for p in path.glob("*.*") if p.suffix in (".csv", ".jsonl"))
    sources = [p for p in sources if path.is_file() or p.stem.startswith("mmlu")]
    if not sources:
        raise UserError(f"{path}: no file mmlu_<subject>.csv or .jsonl")
    dev = {p: q for p in sources for q in [p.parent / "dev" / p.name] if q.is_file()}
    missing = f"{sources[0].parent}: no folder dev with the same names"
    shots, notes = _shots("mmlu", shots, MMLU_SHOTS, len(dev) == len(sources), missing)
    needed = ("question", "choices", "answer")

    def rows_of(source: Path) -> list[dict[str, Any]]:
        return [mmlu_row(row, source, n) for n, row in enumerate(read_rows(source, needed), 1)]

    everything = pick([(source, row) for source in sources for row in rows_of(source)], limit, seed)
    tasks = []
    for source in sources:
        own = [row for origin, row in everything if origin == source]
        if not own:
            continue
        subject = source.stem.removeprefix("mmlu_").removeprefix("mmlu") or "all"
        files = {"test": write_rows(folder / f"{subject}.jsonl", own)}
        extra: dict[str, Any] = {"description": description(subject)}
        if source in dev:
            files["dev"] = write_rows(folder / f"{subject}.dev.jsonl", rows_of(dev[source]))
        else:
            extra |= {"fewshot_split": None, "fewshot_config": None}
        template = builtin("mmlu", "default", "_default_template_yaml")
        tasks.append(write_task(folder, f"local_mmlu_{subject}", template, files, extra))
    return LocalTask(folder, tasks, shots, notes)


def description(subject: str) -> str:
    """What MMLU's prompt begins with."""
    about = f" about {subject.replace('_', ' ')}" if subject != "all" else ""
    return f"The following are multiple choice questions (with answers){about}.\n\n"
