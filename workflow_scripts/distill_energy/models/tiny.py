"""A tiny random Llama and a byte-level tokenizer, made in code: tests and dry runs need no download."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(vocabulary: int = 384):
    """A byte-level BPE tokenizer without merges: 256 bytes, three special tokens, and fillers up to ``vocabulary``."""
    specials = [PAD, START, END]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = specials + alphabet
    words += [f"<|unused{i}|>" for i in range(vocabulary - len(words))]
    core = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in specials])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        unk_token=None,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_config(spec: dict[str, Any]):
    """The Llama configuration of a ``random`` model."""
    hidden, heads = spec.get("hidden", 32), spec.get("heads", 2)
    return LlamaConfig(
        vocab_size=spec.get("vocabulary", 384),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=spec.get("layers", 2),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def tiny_model(spec: dict[str, Any]):
    """A float32 Llama with weights drawn from ``spec["seed"]``, without disturbing the caller's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.get("seed", 0))
        return LlamaForCausalLM(tiny_config(spec))
