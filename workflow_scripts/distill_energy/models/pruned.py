"""Depth pruning: a student that starts as some layers of its teacher (as DistilBERT and Minitron do)."""

from __future__ import annotations

import torch

from ..errors import UserError
from .shape import kept_layers


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
