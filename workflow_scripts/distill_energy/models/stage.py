"""The stage ``preprocess model-…``: a packaged GGUF becomes a plain folder once, for every stage that reads it."""

from __future__ import annotations

from typing import Any

from ..config.params import ModelParams
from ..context import Context


def main(ctx: Context[ModelParams]) -> dict[str, Any]:
    """Convert ``ctx.params.model`` into ``ctx.out/model``. Returns its parameter count and vocabulary size."""
    import json

    from ..errors import UserError
    from .count import safetensors_sizes
    from .gguf import convert, find_gguf

    spec = ctx.params.model
    if spec["source"] != "gguf":
        raise UserError(f"preprocess: a model of source {spec['source']!r} needs no conversion")
    folder = ctx.out / "model"
    ctx.log(f"converting {find_gguf(spec).name}")
    convert(spec, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {
        "parameters": sum(safetensors_sizes(folder).values()),
        "layers": config["num_hidden_layers"],
        "vocabulary": config["vocab_size"],
    }
