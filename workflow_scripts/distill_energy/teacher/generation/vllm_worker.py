"""The process that runs vLLM, in vLLM's own environment: it imports the standard library and vLLM only.

    python vllm_worker.py SETTINGS.json REPLY_FD

Settings: keyword arguments of ``vllm.LLM``. Then one path of a job file a line on standard input. A job is JSON:
``{"prompts": [{"id", "prompt_ids", "room", "seed"}], "temperature", "top_p", "stop_ids", "answers": PATH}``. Its
answers are written to PATH (JSON, atomically), then ``done`` is written to the reply descriptor. ``ready`` comes first.
End of input ends the process.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys


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


def answer(llm, job) -> list:
    """Generated ids and finish reason of each prompt, in order."""
    from vllm import SamplingParams

    sampling = [
        SamplingParams(
            temperature=job["temperature"],
            top_p=job["top_p"] if job["temperature"] > 0 else 1.0,
            top_k=-1,
            max_tokens=prompt["room"],
            # A seed a request: the text depends neither on the batch's composition nor on what was resumed.
            seed=prompt["seed"] if job["temperature"] > 0 else None,
            stop_token_ids=job["stop_ids"],
            detokenize=False,
        )
        for prompt in job["prompts"]
    ]
    inputs = [{"prompt_token_ids": prompt["prompt_ids"]} for prompt in job["prompts"]]
    outputs = llm.generate(inputs, sampling, use_tqdm=False)
    return [
        {"id": prompt["id"], "ids": list(output.outputs[0].token_ids), "finish_reason": output.outputs[0].finish_reason}
        for prompt, output in zip(job["prompts"], outputs, strict=True)
    ]


def main() -> None:
    die_with_parent()
    with open(sys.argv[1], encoding="utf-8") as handle:
        settings = json.load(handle)
    with os.fdopen(int(sys.argv[2]), "w", encoding="utf-8", buffering=1) as reply:
        from vllm import LLM

        llm = LLM(**settings)
        reply.write("ready\n")
        for line in sys.stdin:
            with open(line.strip(), encoding="utf-8") as handle:
                job = json.load(handle)
            write_json(job["answers"], answer(llm, job))
            reply.write("done\n")


if __name__ == "__main__":
    main()
