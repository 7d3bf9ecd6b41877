"""vLLM for real, in its own environment (``make test-vllm``): the same stage, another engine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill_energy.errors import UserError
from distill_energy.models.sources import load_model, load_tokenizer
from distill_energy.teacher.generation.jobs import Prompt, cut
from distill_energy.teacher.generation.stage import make_engine
from distill_energy.teacher.generation.vllm_engine import interpreter
from tests.generation.setting import GENERATION, TEACHER, context, generate, make_data, rows

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
VLLM = {"engine": "vllm", "batch_size": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    try:
        interpreter()
    except UserError as error:
        pytest.skip(str(error))
    return make_data(tmp_path_factory.mktemp("data"))


def start(folder, data, **changes):
    params = {"model": TEACHER, "dtype": "float32", "generation": GENERATION | VLLM | changes, "max_length": 512}
    return make_engine(context(folder, params, {"data": data}), load_tokenizer(TEACHER, {}))


def test_stage(tmp_path, data):
    """The artifact has the form of the other engine's; a second run of the same seed gives the same text."""
    ctx, results = generate(tmp_path / "a", data, VLLM)
    made = rows(ctx) + rows(ctx, "validation")
    assert results["n_train"] + results["n_validation"] == len(made) > 20
    for row in made:
        assert row["input_ids"][: len(row["prompt_ids"])] == row["prompt_ids"]
        assert sum(row["loss_mask"]) == row["n_generated"] <= 10
        assert (row["input_ids"][-1] == 2) == (row["finish_reason"] == "stop")
        assert row["input_ids"][len(row["prompt_ids"]) : -1].count(2) == 0
    assert ctx.meter.tokens["generated"] == results["generated_tokens"]
    again, _ = generate(tmp_path / "b", data, VLLM)
    assert rows(again) == rows(ctx)


def test_greedy_answers_are_those_of_a_plain_loop_and_a_dead_child_is_one_clear_line(tmp_path, data):
    import torch

    model = load_model(TEACHER, {}, dtype="float32")
    prompts = [Prompt(str(n), tuple(range(5, 5 + n)), "p", 6) for n in (2, 5, 11)]
    engine = start(tmp_path, data, temperature=0.0)
    try:
        for prompt, answer in zip(prompts, engine.answer(prompts, 0), strict=True):
            ids = list(prompt.prompt_ids)
            with torch.no_grad():
                for _ in range(6):
                    ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            assert answer.ids == cut(ids[len(prompt.prompt_ids) :], [2])[0]
        engine.process.process.send_signal(signal.SIGKILL)
        with pytest.raises(UserError, match="vLLM ended with status -9"):
            engine.answer(prompts, 0)
    finally:
        engine.close()


PARENT = """
import sys, time
from pathlib import Path
from test_vllm import start
engine = start(Path(sys.argv[1]), Path(sys.argv[2]))
print(engine.process.process.pid, flush=True)
time.sleep(600)
"""


def gone(pid):
    """Whether a process has ended (a zombie that nobody waits for has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_child_is_a_descendant_and_dies_with_a_killed_stage(tmp_path, data):
    """The meter covers descendants; a stage that is killed outright leaves no vLLM on the device."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", PARENT, str(tmp_path), str(data)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        child = int(parent.stdout.readline())
        status = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()
        assert int(status[1]) == parent.pid
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 30
    while not gone(child) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert gone(child)
