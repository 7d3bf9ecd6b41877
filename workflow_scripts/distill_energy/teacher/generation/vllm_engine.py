"""vLLM as an engine: a child process in vLLM's own environment, which pins its own torch.

The child is a descendant of the stage's process, so that the meter counts it. Its environment's interpreter is named by
``DISTILL_ENERGY_VLLM_PYTHON``; else ``.venv-vllm/bin/python`` beside the project is taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
        raise UserError(f"engine vllm: no {path} (set {VARIABLE} to the Python of an environment with vLLM)")
    return path


def settings(
    name: str, max_length: int, dtype: str, gpu: bool, seed: int, concurrency: int, tensor_parallel: int = 1
) -> dict[str, Any]:
    """Keyword arguments of ``vllm.LLM``. ``concurrency``: requests in the engine at a time."""
    chosen: dict[str, Any] = {
        "model": name,
        "dtype": dtype,
        "max_model_len": max_length,
        "max_num_seqs": concurrency,
        "tensor_parallel_size": tensor_parallel,
        "seed": seed,
        "generation_config": "vllm",  # the model's own defaults must not change the sampling
    }
    if not gpu:
        # On a CPU this is a share of the machine's memory, of which 0.92 (the default) is refused; compiling does not
        # pay there (60 s of start-up, no faster).
        chosen |= {"gpu_memory_utilization": 0.3, "enforce_eager": True}
    return chosen


@dataclass(frozen=True)
class Served:
    """A model that vLLM can load: name or path, revision, whether it is on this machine, and its end tokens."""

    name: str
    revision: str | None
    local: bool
    stops: list[int]


def served_model(spec: dict[str, Any], inputs: dict[str, Path], work: Path, tokenizer: Any) -> Served:
    """The model of ``spec`` as vLLM loads it; what has no folder of its own is written into ``work``."""
    if spec["source"] in ("pruned", "random"):
        folder = work / "vllm-model"
        load_model(spec, inputs, dtype="float32", device="cpu").save_pretrained(folder)
        load_tokenizer(spec, inputs).save_pretrained(folder)
        spec = {"source": "folder", "path": str(folder)}
    name, options = folder_of(spec, inputs)
    config = None
    with contextlib.suppress(OSError):  # not every model has one
        config = GenerationConfig.from_pretrained(name, **options)
    stops = stop_ids(SimpleNamespace(generation_config=config), tokenizer)
    return Served(name, options.get("revision"), spec["source"] != "hub", stops)


class VllmProcess:
    """A child that holds a model in vLLM and answers jobs (see ``vllm_worker.py``). ``versions``: what runs in it."""

    def __init__(self, arguments: dict[str, Any], work: Path, local: bool, gpu: bool) -> None:
        self.work = work
        path = work / "vllm-settings.json"
        path.write_text(json.dumps(arguments), encoding="utf-8")
        environment = os.environ | ENVIRONMENT | ({} if gpu else CPU_ENVIRONMENT)
        if local:
            environment |= {"HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)  # this environment's packages are not for the other interpreter
        read, write = os.pipe()
        self.log = work / "vllm.log"
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
        self.versions: dict[str, str] = json.loads(self._expect("ready"))

    def _expect(self, word: str) -> str:
        """Wait for the child's word; what follows it. Raises UserError with the end of its log if it died."""
        found, _, rest = self._reply.readline().strip().partition(" ")
        if found != word:
            status = self.process.wait()
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise UserError(f"vLLM ended with status {status}: {' | '.join(lines[-3:]) or 'no output'}")
        return rest

    def ask(self, content: dict[str, Any]) -> list[dict[str, Any]]:
        """The answers to a job, in the order of its prompts."""
        name = uuid.uuid4().hex
        job, result = self.work / f"vllm-{name}.json", self.work / f"vllm-{name}.answers.json"
        job.write_text(json.dumps(content | {"answers": str(result)}), encoding="utf-8")
        try:
            self.process.stdin.write(f"{job}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the child is gone; the missing reply says so, with its log
        self._expect("done")
        answers = json.loads(result.read_text(encoding="utf-8"))
        job.unlink()
        result.unlink()
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


class VllmEngine:
    """Answers prompts through a child process that holds the model.

    ``sampling``: ``temperature`` and ``top_p``; ``options``: further arguments of ``vllm.LLM``.
    """

    name = "vllm"

    def __init__(
        self,
        model: Served,
        work: Path,
        sampling: dict[str, Any],
        *,
        max_length: int,
        dtype: str = "auto",
        seed: int = 0,
        concurrency: int = 32,
        tensor_parallel: int = 1,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.sampling, self.stops = sampling, model.stops
        gpu = torch.cuda.is_available()
        named = str(model_dtype(dtype)).removeprefix("torch.")
        self.settings = settings(model.name, max_length, named, gpu, seed, concurrency, tensor_parallel)
        if model.revision:
            self.settings |= {"revision": model.revision, "tokenizer_revision": model.revision}
        self.settings |= options or {}
        self.process = VllmProcess(self.settings, work, model.local, gpu)

    def serve(
        self,
        prompts: list[Prompt],
        seed: int,
        *,
        stop: Sequence[str] = (),
        concurrency: int | None = None,
        fixed: bool = False,
        sampling: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """``id``, ``ids`` and ``finish_reason`` of each prompt's answer, ids as the engine gave them.

        Where a ``concurrency`` is stated, at most so many requests are in the engine at a time, and ``first_s`` and
        ``total_s`` come too. ``fixed``: every answer takes all of its room, whatever the model would end with.
        """
        sampling = sampling or self.sampling
        return self.process.ask(
            {
                "prompts": [
                    {
                        "id": prompt.id,
                        "prompt_ids": list(prompt.prompt_ids),
                        "room": prompt.room,
                        "seed": int(digest(seed, prompt.id)[:8], 16) & 0x7FFFFFFF,
                    }
                    for prompt in prompts
                ],
                "temperature": sampling["temperature"],
                "top_p": sampling["top_p"],
                "stop_ids": [] if fixed else self.stops,
                "fixed": fixed,
                "stop": list(stop),
                "concurrency": concurrency,
            }
        )

    def answer(
        self, prompts: list[Prompt], seed: int, done: Callable[[int, int, int], None] | None = None
    ) -> list[Raw]:
        """Answers in the order of ``prompts``; nothing is padded."""
        answers = []
        for found in self.serve(prompts, seed):
            ids, reason = cut(found["ids"], self.stops)
            answers.append(Raw(found["id"], ids, reason))
        if done is not None:
            done(sum(len(p.prompt_ids) for p in prompts), sum(len(a.ids) for a in answers), 0)
        return answers

    def close(self) -> None:
        """End the child."""
        self.process.close()
