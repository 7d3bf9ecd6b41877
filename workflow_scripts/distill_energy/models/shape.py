"""What a model's shape says without its weights (imports nothing heavy)."""

from __future__ import annotations

from typing import Any

from ..errors import UserError


def kept_layers(total: int, layers: int, keep: str = "ends") -> list[int]:
    """Indices of the layers kept, ascending. Raises UserError if ``layers`` exceeds ``total``.

    ``ends``: the first ⌈layers/2⌉ and the last ⌊layers/2⌋. ``even``: spread evenly, both ends included.
    """
    if layers > total:
        raise UserError(f"pruned model: {layers} layers asked, its source has {total}")
    if keep == "ends":
        first = (layers + 1) // 2
        return [*range(first), *range(total - (layers - first), total)]
    if keep == "even":
        if layers == 1:
            return [0]
        return [round(i * (total - 1) / (layers - 1)) for i in range(layers)]
    raise UserError(f"pruned model: keep {keep!r} is not one of ends, even")


def tiny_parameter_count(spec: dict[str, Any]) -> int:
    """Parameters of a ``random`` model: tied embedding; per layer four attention and three MLP matrices, two norms."""
    hidden = spec.get("hidden", 32)
    layer = 4 * hidden * hidden + 3 * hidden * 2 * hidden + 2 * hidden
    return spec.get("vocabulary", 384) * hidden + spec.get("layers", 2) * layer + hidden


def shape_parameter_count(shape: dict[str, Any]) -> int:
    """Parameters of a stated ``shape``: embedding and output layer, and per layer four attention and three MLP
    matrices. Norms, below 0.01 % of a large model, are left out."""
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    width = shape.get("head_dim") or hidden // heads
    keys = shape.get("num_key_value_heads") or heads
    layer = 2 * hidden * heads * width + 2 * hidden * keys * width + 3 * hidden * shape["intermediate_size"]
    tables = 1 if shape.get("tie_word_embeddings") else 2
    return tables * shape["vocab_size"] * hidden + shape["num_hidden_layers"] * layer
