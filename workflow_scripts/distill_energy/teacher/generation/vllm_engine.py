"""vLLM as an engine: a child process in vLLM's own environment, which pins its own torch.

The child is a descendant of the stage's process, so that the meter counts it. Its environment's interpreter is named by
``DISTILL_ENERGY_VLLM_PYTHON``; else ``.venv-vllm/bin/python`` beside the project is taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import GenerationConfig

from ...data.hashing import digest
from ...errors import UserError
from ...models.sources import folder_of, load_model, load_tokenizer, model_dtype, stop_ids
from .jobs import Prompt, Raw, cut

VARIABLE = "DISTILL_ENERGY_VLLM_PYTHON"
WORKER = Path(__file__).with_name("vllm_worker.py")
#: Found by trial: without these the CPU build binds cores, looks for a network, or does not start.
CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
}
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}


def interpreter() -> Path:
    """The Python of vLLM's environment. Raises UserError if there is none."""
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else Path(__file__).resolve().parents[4] / ".venv-vllm" / "bin" / "python"
    if not path.exists():
        raise UserError(f"generation.engine vllm: no {path} (set {VARIABLE} to the Python of an environment with vLLM)")
    return path


def settings(name: str, params: dict[str, Any], max_length: int, dtype: str, gpu: bool) -> dict[str, Any]:
    """Keyword arguments of ``vllm.LLM``."""
    chosen: dict[str, Any] = {
        "model": name,
        "dtype": dtype,
        "max_model_len": max_length,
        "max_num_seqs": params["batch_size"],
        "tensor_parallel_size": params.get("tensor_parallel", 1),
        "seed": params["seed"],
        "generation_config": "vllm",  # the model's own defaults must not change the sampling
    }
    if not gpu:
        # On a CPU this is a share of the machine's memory, of which 0.92 (the default) is refused; compiling does not
        # pay there (60 s of start-up, no faster).
        chosen |= {"gpu_memory_utilization": 0.3, "enforce_eager": True}
    return chosen


class VllmEngine:
    """Answers shards of prompts through a child process that holds the model."""

    name = "vllm"

    def __init__(self, ctx, tokenizer) -> None:
        spec, params = ctx.spec.params["model"], ctx.spec.params["generation"]
        self.params = params
        self.work = ctx.work
        name, revision, generation_config = self._model(ctx, spec)
        self.stops = stop_ids(generation_config, tokenizer)
        gpu = torch.cuda.is_available()
        dtype = str(model_dtype(ctx.spec.params.get("dtype", "auto"))).removeprefix("torch.")
        arguments = settings(name, params, ctx.spec.params["max_length"], dtype, gpu)
        if revision:
            arguments |= {"revision": revision, "tokenizer_revision": revision}
        self._start(arguments, local=spec["source"] != "hub", gpu=gpu)

    def _model(self, ctx, spec: dict[str, Any]):
        """Name or path for vLLM, its revision, and an object that has the model's ``generation_config``."""
        if spec["source"] in ("pruned", "random"):
            folder = ctx.work / "vllm-model"
            load_model(spec, ctx.inputs, dtype="float32", device="cpu").save_pretrained(folder)
            load_tokenizer(spec, ctx.inputs).save_pretrained(folder)
            spec = {"source": "folder", "path": str(folder)}
        name, options = folder_of(spec, ctx.inputs)
        config = None
        with contextlib.suppress(OSError):  # not every model has one
            config = GenerationConfig.from_pretrained(name, **options)
        return name, options.get("revision"), SimpleNamespace(generation_config=config)

    def _start(self, arguments: dict[str, Any], local: bool, gpu: bool) -> None:
        path = self.work / "vllm-settings.json"
        path.write_text(json.dumps(arguments), encoding="utf-8")
        environment = os.environ | ENVIRONMENT | ({} if gpu else CPU_ENVIRONMENT)
        if local:
            environment |= {"HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)  # this environment's packages are not for the other interpreter
        read, write = os.pipe()
        self.log = self.work / "vllm.log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [str(interpreter()), str(WORKER), str(path), str(write)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=(write,),
            )
        os.close(write)
        self._reply = os.fdopen(read, encoding="utf-8")
        self._expect("ready")

    def _expect(self, word: str) -> None:
        """Wait for the child's word. Raises UserError with the end of its log if it died."""
        if self._reply.readline().strip() != word:
            status = self.process.wait()
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise UserError(f"vLLM ended with status {status}: {' | '.join(lines[-3:]) or 'no output'}")

    def answer(
        self, prompts: list[Prompt], seed: int, done: Callable[[int, int, int], None] | None = None
    ) -> list[Raw]:
        """Answers in the order of ``prompts``; nothing is padded."""
        name = digest(seed, *(prompt.id for prompt in prompts))[:16]
        job, result = self.work / f"vllm-{name}.json", self.work / f"vllm-{name}.answers.json"
        content = {
            "prompts": [
                {
                    "id": prompt.id,
                    "prompt_ids": list(prompt.prompt_ids),
                    "room": prompt.room,
                    "seed": int(digest(seed, prompt.id)[:8], 16) & 0x7FFFFFFF,
                }
                for prompt in prompts
            ],
            "temperature": self.params["temperature"],
            "top_p": self.params["top_p"],
            "stop_ids": self.stops,
            "answers": str(result),
        }
        job.write_text(json.dumps(content), encoding="utf-8")
        try:
            self.process.stdin.write(f"{job}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the child is gone; the missing reply says so, with its log
        self._expect("done")
        answers = []
        for found in json.loads(result.read_text(encoding="utf-8")):
            ids, reason = cut(found["ids"], self.stops)
            answers.append(Raw(found["id"], ids, reason))
        job.unlink()
        result.unlink()
        if done is not None:
            done(sum(len(p.prompt_ids) for p in prompts), sum(len(a.ids) for a in answers), 0)
        return answers

    def close(self) -> None:
        """End the child: close its input, and kill it if it does not go."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reply.close()
