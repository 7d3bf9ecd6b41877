"""Shared beginnings, caches and the float32 output layer on other architectures than Llama, against the plain model."""

import pytest
import torch

from distill_energy.data.generated import evaluation_items
from distill_energy.evaluate import choice, gold
from distill_energy.evaluate.generate import generate
from distill_energy.evaluate.inference import inference

from .support import benchmarks, open_session

COMMON = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def build(kind: str):
    import transformers as t

    configs = {
        "olmo2": lambda: t.Olmo2Config(**COMMON),
        "qwen3": lambda: t.Qwen3Config(**COMMON, head_dim=8),
        "mistral": lambda: t.MistralConfig(**COMMON, sliding_window=16),
        "gemma2": lambda: t.Gemma2Config(**COMMON, head_dim=8, sliding_window=16, final_logit_softcapping=1.0),
        "granite": lambda: t.GraniteConfig(**COMMON, logits_scaling=4.0),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = t.AutoModelForCausalLM.from_config(configs[kind]())
        for parameter in model.parameters():  # spread, so that an arg max is no near-tie
            if parameter.dim() > 1:
                parameter.data.mul_(4.0)
    return model.float().eval()


@pytest.fixture(params=["olmo2", "qwen3", "mistral", "gemma2", "granite"])
def session(request):
    opened = open_session()
    opened.model = build(request.param)
    return opened


def plain(session, ids):
    with torch.no_grad():
        return session.model(torch.tensor([ids])).logits[0].float()


def test_predictions_and_likelihoods(session):
    items = evaluation_items("gold", 5, 1)
    for item, row in zip(items, gold.predict(session, items), strict=True):
        prompt, response = session.exchange(item["prompt"], item["response"])
        logits = plain(session, prompt + response)[len(prompt) - 1 : -1]
        assert row.predicted == logits.argmax(-1).tolist()
        expected = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).mean()
        assert row.log_probability == pytest.approx(float(expected), abs=1e-3)
    prompts = [session.prompt_ids(text) for text in ("What is hot?", "Name one colour of the evening sky, please.")]
    options = [[[70], [71, 72, 73, 74]], [[80, 81], [82, 83, 84]]]
    found = choice.score_continuations(session, prompts, options)
    for prompt, row, values in zip(prompts, options, found, strict=True):
        for option, (value, _) in zip(row, values, strict=True):
            logp = plain(session, prompt + option).log_softmax(-1)
            expected = sum(float(logp[len(prompt) - 1 + j, token]) for j, token in enumerate(option))
            assert value == pytest.approx(expected, abs=1e-3)


def test_generation_and_inference_cost(session):
    prompts = [session.prompt_ids(text) for text in ("Hi.", "Name three colours, please.")]
    for prompt, done in zip(prompts, generate(session, prompts, 6), strict=True):
        ids = list(prompt)
        for _ in range(6):
            ids.append(int(plain(session, ids)[-1].argmax()))
            if ids[-1] in session.stop_ids:
                break
        made = [token for token in ids[len(prompt) :] if token not in session.stop_ids]
        assert done.text == session.tokenizer.decode(made, skip_special_tokens=True)
    params = {"kind": "inference", "batch_sizes": [2], "prompt_tokens": 24, "new_tokens": 3, "min_seconds": 0.05}
    _, rows = inference(session, "i", benchmarks(i=params)["i"])
    assert [row["tokens"] for row in rows] == [48 * rows[0]["repeats"], 6 * rows[1]["repeats"]]
