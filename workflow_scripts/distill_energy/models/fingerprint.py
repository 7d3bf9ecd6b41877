"""Hashes by which a cache knows its teacher, tokenizer and template."""

from __future__ import annotations

import hashlib
import json

import torch


def tokenizer_hash(tokenizer) -> str:
    """Hex SHA-256 of what decides token ids: the vocabulary and the special tokens."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = sorted(map(str, tokenizer.all_special_tokens))
    return hashlib.sha256(json.dumps([vocabulary, special]).encode()).hexdigest()


def template_hash(tokenizer) -> str:
    """Hex SHA-256 of the chat template."""
    return hashlib.sha256(str(getattr(tokenizer, "chat_template", None)).encode()).hexdigest()


def weights_hash(model, sample_bytes: int = 4096) -> str:
    """Hex SHA-256 over each parameter's name, shape, type and first and last bytes: fast, and catches other weights."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        flat = parameter.detach().reshape(-1)
        count = max(1, sample_bytes // max(1, flat.element_size()))
        for piece in (flat[:count], flat[-count:]):
            digest.update(piece.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
