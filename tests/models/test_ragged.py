"""Attention without a mask over packed rows. The kernel needs a GPU (tests/gpu); here another one computes its rule."""

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Olmo2Config

from distill_energy.models import ragged
from distill_energy.models.packing import leakage

SIZE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 4}


def by_sequence(query, key, value, starts, longest, scaling, window):
    """What the kernel computes, one sequence after the other: [tokens, heads, d]."""
    out = []
    ends = starts.tolist()
    assert max(b - a for a, b in itertools.pairwise(ends)) == longest
    for a, b in itertools.pairwise(ends):
        q, k, v = (x[a:b].transpose(0, 1) for x in (query, key, value))
        k, v = (x.repeat_interleave(q.shape[0] // x.shape[0], 0) for x in (k, v))
        mask = torch.ones(b - a, b - a, dtype=torch.bool).tril()
        if window is not None:
            mask &= mask.new_ones(mask.shape).triu(1 - window)
        out.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scaling).transpose(0, 1))
    return torch.cat(out)


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(ragged, "_kernel", by_sequence)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(num_key_value_heads=2, **SIZE),
        Olmo2Config(num_key_value_heads=4, pad_token_id=0, **SIZE),
        MistralConfig(num_key_value_heads=2, sliding_window=4, **SIZE),
    ],
    ids=["grouped", "normed", "window"],
)
def test_packed_states_and_gradients_are_those_of_a_dense_mask(kernel, config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double()
    ids = torch.randint(0, 64, (1, 16))
    positions = torch.cat([torch.arange(7), torch.arange(9)])[None]

    def run():
        model.zero_grad()
        states = model.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
        states.square().sum().backward()
        return states.detach(), [p.grad.clone() for p in model.base_model.parameters()]

    dense = run()
    assert ragged.install(model, autocast=False)
    assert model.config._attn_implementation == ragged.NAME
    ragged.set_sequences(torch.tensor([0, 7, 16], dtype=torch.int32), 9, 16)
    states, gradients = run()
    torch.testing.assert_close(states, dense[0])
    for found, expected in zip(gradients, dense[1], strict=True):
        torch.testing.assert_close(found, expected)
    assert leakage(model) < 1e-6


def test_rows_whose_sequences_were_not_said_are_refused(kernel):
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZE))
    assert ragged.install(model, autocast=False)
    ragged.set_sequences(torch.tensor([0, 5], dtype=torch.int32), 5, 5)
    with pytest.raises(RuntimeError, match="were not said"):
        model(input_ids=torch.zeros(1, 6, dtype=torch.long))


def test_what_the_kernel_has_not_keeps_its_attention(kernel):
    model = AutoModelForCausalLM.from_config(LlamaConfig(attention_dropout=0.5, **SIZE)).train()
    before = model.config._attn_implementation
    assert not ragged.install(model, autocast=False)
    assert model.config._attn_implementation == before
    assert not ragged.attend_ragged(model, autocast=True)  # no GPU
