"""Model sources: a specification from the configuration becomes a model, a tokenizer, or a parameter count.

Specifications are the dicts of ``config/sources.py`` with references resolved. Local sources never touch the network.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ..errors import UserError
from .lfs import is_pointer
from .pruned import prune
from .quiet import quiet
from .shaped import config_of, shaped_model
from .template import freeze
from .tiny import tiny_config, tiny_model, tiny_tokenizer

NEEDS_PREPARED = ("gguf", "trained")


def bf16_is_fast(device: str | None = None) -> bool:
    """Whether bfloat16 is native: on CUDA always, on a CPU where oneDNN says so (else it is emulated and slower)."""
    if (device or "").startswith("cuda") or (device is None and torch.cuda.is_available()):
        return True
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


def model_dtype(dtype: str = "auto", device: str | None = None):
    """The torch dtype for ``auto``, ``float32`` or ``bfloat16``."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype == "auto":
        dtype = "bfloat16" if bf16_is_fast(device) else "float32"
    if dtype not in known:
        raise UserError(f"dtype {dtype!r} is not one of auto, float32, bfloat16")
    return known[dtype]


def default_device() -> str:
    """``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def hub_is_offline() -> bool:
    """Whether the user told the hub's client to ask no network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def folder_of(spec: dict[str, Any], inputs: dict[str, Path]) -> tuple[str, dict[str, Any]]:
    """What ``from_pretrained`` is given for a hub, folder, GGUF or trained model: (name or path, keyword arguments)."""
    source = spec["source"]
    if source == "hub":
        kwargs: dict[str, Any] = {"revision": spec["revision"]} if spec.get("revision") else {}
        if hub_is_offline():
            kwargs["local_files_only"] = True
        return spec["id"], kwargs
    if source == "folder":
        path = Path(spec["path"]).expanduser()
    elif source in NEEDS_PREPARED:
        if "model" not in inputs:
            raise UserError(f"a {source} model needs its prepared folder (input 'model')")
        path = Path(inputs["model"]) / "model"
    else:
        raise UserError(f"model source {source!r} is not one of hub, folder, gguf, pruned, random, trained")
    if not (path / "config.json").is_file():
        raise UserError(f"model folder {path}: no config.json")
    return str(path), {"local_files_only": True}


def load_model(
    spec: dict[str, Any],
    inputs: dict[str, Path],
    dtype: str = "auto",
    device: str | None = None,
    for_training: bool = False,
):
    """Load a causal language model on ``device`` (default: the GPU if there is one).

    ``device="auto"`` spreads a model over all GPUs (``device_map``). Returned in eval mode, or in training mode with
    the KV cache off if ``for_training``.
    """
    quiet()
    torch_dtype = model_dtype(dtype, device if device != "auto" else None)
    spread = device == "auto"
    target = default_device() if device in (None, "auto") else device
    if spec["source"] == "random":
        model = cast(tiny_model(spec), torch_dtype)
    elif spec["source"] == "shaped":
        model = shaped_model(spec["config"], torch_dtype, target)
    elif spec["source"] == "pruned":
        # Pruned before it is moved, so that the accelerator never holds the layers that go.
        model = load_model(spec["of"], inputs, dtype=dtype, device="cpu" if not spread else "auto")
        model = prune(model, spec["layers"], spec.get("keep", "ends"))
    else:
        name, kwargs = folder_of(spec, inputs)
        if spread and target == "cuda":
            kwargs["device_map"] = "auto"
        model = _whole_checkpoint(name, torch_dtype, kwargs)
    if not (spread and target == "cuda"):
        model = model.to(target)
    if for_training:
        model.config.use_cache = False
        return model.train()
    return model.eval()


def bare_model(spec: dict[str, Any], inputs: dict[str, Path]) -> Any:
    """The model's modules without weights (on torch's meta device): for what its shape alone tells."""
    with torch.device("meta"):
        if spec["source"] == "random":
            return AutoModelForCausalLM.from_config(tiny_config(spec))
        if spec["source"] == "shaped":
            return AutoModelForCausalLM.from_config(config_of(spec["config"]))
        if spec["source"] == "pruned":
            return prune(bare_model(spec["of"], inputs), spec["layers"], spec.get("keep", "ends"))
        name, kwargs = folder_of(spec, inputs)
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name, trust_remote_code=False, **kwargs))


def cast(model: Any, dtype: torch.dtype) -> Any:
    """``model`` with its parameters in ``dtype``. Buffers stay: rotary frequencies in bfloat16 turn far positions."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def _whole_checkpoint(name: str, dtype: torch.dtype, kwargs: dict[str, Any]) -> Any:
    """A model of which every weight is in its files, and nothing else. Raises UserError naming what is not.

    transformers draws missing weights at random, other ones each time, and warns in a log that nobody reads.
    """
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, trust_remote_code=False, output_loading_info=True, **kwargs
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model {name}: cannot be loaded ({why_not(name, error)})") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        found = sorted(map(str, info.get(kind) or ()))
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            what = kind.replace("_keys", "")
            raise UserError(f"model {name}: {len(found)} {what} weights ({', '.join(found[:3])}{more})")
    return model


def why_not(name: str, error: Exception) -> str:
    """One line on why a model cannot be loaded; a pointer of git LFS in the place of a file is named."""
    for path in sorted(Path(name).glob("*.safetensors")) if Path(name).is_dir() else ():
        if is_pointer(path):
            return f"{path.name} is a git LFS pointer, not the file: git lfs pull"
    if "trust_remote_code" in str(error):
        return "its files bring code of its own (auto_map), which is never run here"
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def load_tokenizer(spec: dict[str, Any], inputs: dict[str, Path]):
    """Load the tokenizer, with a chat template and a pad token. Padding side is the caller's to set.

    ``spec["tokenizer"]`` names another one: base models often have no chat template, their tuned relatives do.
    """
    quiet()
    if spec["source"] == "pruned":
        return load_tokenizer(spec["of"], inputs)
    if spec["source"] == "random" or (spec["source"] == "shaped" and not spec.get("tokenizer")):
        return tiny_tokenizer(spec.get("vocabulary", 384))
    if spec.get("tokenizer"):
        name, kwargs = str(Path(spec["tokenizer"]).expanduser()), {"local_files_only": True}
        if not (Path(name) / "tokenizer_config.json").is_file():
            name, kwargs = folder_of({"source": "hub", "id": spec["tokenizer"]}, {})
    else:
        name, kwargs = folder_of(spec, inputs)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **kwargs)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"tokenizer of {name}: cannot be loaded ({why_not(name, error)})") from error
    if not tokenizer.chat_template:
        raise UserError(f"tokenizer of {name}: has no chat template")
    freeze(tokenizer)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"tokenizer of {name}: has neither a pad token nor an end-of-sequence token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def declared_stop_ids(spec: dict[str, Any], inputs: dict[str, Path], tokenizer) -> list[int]:
    """As ``stop_ids``, of a model that is not loaded: from its tokenizer and its ``generation_config.json``."""
    while spec["source"] == "pruned":
        spec = spec["of"]
    config = None
    if spec["source"] not in ("random", "shaped"):
        name, options = folder_of(spec, inputs)
        with contextlib.suppress(OSError):  # not every model has one
            config = GenerationConfig.from_pretrained(name, **options)
    return stop_ids(SimpleNamespace(generation_config=config), tokenizer)


def stop_ids(model, tokenizer) -> list[int]:
    """Token ids that end a response: the tokenizer's end-of-sequence token and the generation config's."""
    found: list[int] = []
    config = getattr(model, "generation_config", None)
    for value in (tokenizer.eos_token_id, getattr(config, "eos_token_id", None)):
        values = value if isinstance(value, list | tuple) else [value]
        found += [int(v) for v in values if v is not None and int(v) not in found]
    if not found:
        raise UserError("the tokenizer has no end-of-sequence token: responses would never end")
    return found
