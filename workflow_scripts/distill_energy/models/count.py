"""Parameter counts without loading weights: from headers of the files, or from the configuration."""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path
from typing import Any

from ..errors import UserError
from .gguf import find_gguf, tensor_sizes
from .shape import kept_layers, shape_parameter_count, tiny_parameter_count

LAYER = re.compile(r"(?:^|\.)(?:layers|blk|h)\.(\d+)\.")


def safetensors_sizes(folder: Path) -> dict[str, int]:
    """Elements of every tensor of a folder's safetensors files, from their headers (8-byte length, then JSON)."""
    sizes: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                sizes[name] = math.prod(entry["shape"])
    return sizes


def tensors_of(spec: dict[str, Any], inputs: dict[str, Path]) -> dict[str, int]:
    """Elements by tensor name, empty where no file is at hand."""
    source = spec["source"]
    if source == "folder":
        return safetensors_sizes(Path(spec["path"]).expanduser())
    if source in ("gguf", "trained") and "model" in inputs:
        found = safetensors_sizes(Path(inputs["model"]) / "model")
        if found or source == "trained":
            return found
    if source == "gguf":
        return tensor_sizes(find_gguf(spec))
    return {}


def parameter_count(spec: dict[str, Any], inputs: dict[str, Path] | None = None) -> int | None:
    """Number of parameters, or None if it cannot be known without a download.

    A stated ``parameters`` wins. Tied embeddings count once. A pruned copy loses its dropped layers' tensors.
    """
    inputs = inputs or {}
    if spec.get("parameters"):
        return int(spec["parameters"])
    if spec.get("shape"):
        return shape_parameter_count(spec["shape"])
    source = spec["source"]
    if source == "random":
        return tiny_parameter_count(spec)
    if source == "pruned":
        of = spec["of"]
        if of.get("shape"):
            return shape_parameter_count({**of["shape"], "num_hidden_layers": spec["layers"]})
        if of["source"] == "random":
            return tiny_parameter_count({**of, "layers": spec["layers"]})
        sizes = _readable(of, inputs)
        total = {int(m.group(1)) for name in sizes if (m := LAYER.search(name))}
        if not total:
            return None
        kept = set(kept_layers(len(total), spec["layers"], spec.get("keep", "ends")))
        return sum(n for name, n in sizes.items() if not (m := LAYER.search(name)) or int(m.group(1)) in kept)
    return sum(_readable(spec, inputs).values()) or None


def _readable(spec: dict[str, Any], inputs: dict[str, Path]) -> dict[str, int]:
    try:
        return tensors_of(spec, inputs)
    except (OSError, UserError):
        return {}
