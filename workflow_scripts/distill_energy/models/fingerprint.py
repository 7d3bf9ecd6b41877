"""Hashes by which a cache knows its teacher, tokenizer and template."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from ..errors import UserError


def tokenizer_hash(tokenizer) -> str:
    """What decides token ids: hex SHA-256 of the vocabulary and the special tokens, and, after a dash, of the merges,
    which decide how a text is cut. Compare by ``same_tokenizer``: records of earlier releases have the first alone."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = sorted(map(str, tokenizer.all_special_tokens))
    found = _digest([vocabulary, special])
    backend = getattr(tokenizer, "backend_tokenizer", None)
    merges = json.loads(backend.to_str())["model"].get("merges") if backend is not None else None
    if not merges:
        return found
    # Written as pairs or as texts, depending on the library's version.
    return f"{found}-{_digest([m if isinstance(m, str) else ' '.join(m) for m in merges])}"


def same_tokenizer(one: str, other: str) -> bool:
    """Whether two hashes are of one tokenizer, as far as both tell."""
    (ids, _, merges), (their_ids, _, their_merges) = one.partition("-"), other.partition("-")
    return ids == their_ids and (not merges or not their_merges or merges == their_merges)


def differing(one: str, other: str) -> tuple[str, str]:
    """The two hashes, short, where they differ."""
    first, second = one.partition("-"), other.partition("-")
    part = 0 if first[0] != second[0] else 2
    return first[part][:12], second[part][:12]


def check_made_with(path: Any, made_by: str | None, own: str, whose: str, hint: str = "") -> None:
    """Raise UserError if a file's ids were made with another tokenizer (``made_by``; None: not told) than ``own``, the
    hash of ``whose``: they would mean other texts. ``hint`` ends the line."""
    if made_by is not None and not same_tokenizer(made_by, own):
        theirs, ours = differing(made_by, own)
        raise UserError(f"{path}: made with the tokenizer {theirs}, the {whose}'s is {ours}{hint}")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


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
