"""vLLM for real, in its own environment (``make test-vllm``): the same stage, another engine."""

import os
import signal
import subprocess
import time

import pytest

from distill_energy.errors import UserError
from distill_energy.models.sources import load_model, load_tokenizer
from distill_energy.teacher.generation.jobs import Prompt, cut
from distill_energy.teacher.generation.vllm_engine import VllmEngine, interpreter
from generation.setting import GENERATION, TEACHER, context, generate, make_data, rows

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
VLLM = {"engine": "vllm", "batch_size": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    try:
        interpreter()
    except UserError as error:
        pytest.skip(str(error))
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def engine(tmp_path, data):
    """A function that starts an engine; all are closed at the end."""
    started = []

    def start(**changes):
        params = {"model": TEACHER, "dtype": "float32", "generation": GENERATION | VLLM | changes, "max_length": 512}
        started.append(VllmEngine(context(tmp_path, params, {"data": data}), load_tokenizer(TEACHER, {})))
        return started[-1]

    yield start
    for one in started:
        one.close()


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


def test_greedy_answers_are_those_of_a_plain_loop(engine):
    import torch

    model = load_model(TEACHER, {}, dtype="float32")
    prompts = [Prompt(str(n), tuple(range(5, 5 + n)), "p", 6) for n in (2, 5, 11)]
    for prompt, answer in zip(prompts, engine(temperature=0.0).answer(prompts, 0), strict=True):
        ids = list(prompt.prompt_ids)
        with torch.no_grad():
            for _ in range(6):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer.ids == cut(ids[len(prompt.prompt_ids) :], [2])[0]


def test_the_child_is_a_child_and_dies_with_its_parent(engine):
    """The meter covers descendants; a killed stage leaves no vLLM behind."""
    child = engine().process.pid
    parent = subprocess.run(["ps", "-o", "ppid=", "-p", str(child)], capture_output=True, text=True, check=True)
    assert int(parent.stdout) == os.getpid()


def test_a_dead_child_is_one_clear_line(engine):
    running = engine()
    running.process.send_signal(signal.SIGKILL)
    time.sleep(0.5)
    with pytest.raises(UserError, match="vLLM ended with status -9"):
        running.answer([Prompt("a", (5, 6), "p", 3)], 0)
