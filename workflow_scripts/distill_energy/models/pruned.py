"""Depth pruning: a student that starts as some layers of its teacher (as DistilBERT and Minitron do)."""

from __future__ import annotations

import math

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
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index
    total = config.num_hidden_layers
    # Per-layer lists first: some configurations check their length against num_hidden_layers.
    for name in ("layer_types", "no_rope_layers", "layers_block_type", "mlp_layer_types"):
        values = getattr(config, name, None)
        if isinstance(values, list | tuple) and len(values) == total:
            setattr(config, name, [values[i] for i in chosen])
    if isinstance(first := getattr(config, "first_k_dense_replace", None), int):  # DeepSeek: dense layers, then experts
        config.first_k_dense_replace = sum(i < first for i in chosen)
    if isinstance(depth := getattr(config, "scale_depth", None), float):  # MiniCPM divides it by √(number of layers)
        config.scale_depth = depth * math.sqrt(layers / total)
    config.num_hidden_layers = layers
    _check_shape(model)
    return model


def _check_shape(model) -> None:
    """Raise UserError if the configuration would not build the model that is left: it could not be loaded again."""
    with torch.device("meta"):
        built = type(model)(model.config)
    ours, theirs = ({n: tuple(p.shape) for n, p in m.named_parameters()} for m in (model, built))
    if ours != theirs:
        name = next(iter(sorted(ours.items() ^ theirs.items())))[0]
        raise UserError(
            f"pruned model: {type(model).__name__} with {model.config.num_hidden_layers} layers is not what its "
            f"configuration describes ({name}); this architecture cannot be pruned by layers"
        )
