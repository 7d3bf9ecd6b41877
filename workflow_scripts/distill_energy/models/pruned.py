"""Depth pruning: a student that starts as some layers of its teacher (as DistilBERT and Minitron do)."""

from __future__ import annotations

import torch

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


def prune(model, layers: int, keep: str = "ends"):
    """Keep some layers of a causal LM, in place. Embeddings, final norm and output layer stay."""
    decoder = model.base_model
    if not hasattr(decoder, "layers"):
        raise UserError(f"pruned model: {type(model).__name__} has no list of layers")
    config = model.config
    chosen = kept_layers(len(decoder.layers), layers, keep)
    decoder.layers = torch.nn.ModuleList([decoder.layers[i] for i in chosen])
    for index, layer in enumerate(decoder.layers):
        # The KV cache is addressed by this index: a stale one makes generation read empty slots.
        if hasattr(layer, "layer_idx"):
            layer.layer_idx = index
        if hasattr(layer, "self_attn"):
            layer.self_attn.layer_idx = index
    # Per-layer lists first: some configurations check their length against num_hidden_layers.
    for name in ("layer_types", "no_rope_layers"):
        values = getattr(config, name, None)
        if isinstance(values, list | tuple) and len(values) > layers:
            setattr(config, name, [values[i] for i in chosen])
    config.num_hidden_layers = layers
    return model
