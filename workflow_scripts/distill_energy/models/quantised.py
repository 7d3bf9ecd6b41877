"""Weight-only quantisation by torchao, saved so that plain transformers loads it (with torchao) to equal logits.

int8 rounds each row of a linear layer's weight to ±127 steps, int4 each group of its inputs to 16 levels. Embeddings
and the output layer stay as they are. torchao 0.18 multiplies int8 weights on a CPU; its int4 products are for other
devices, so that int4 values are kept in bytes here and become floats again before each product: what int4 costs in
quality is measured, what its kernels save in serving is not.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ..errors import UserError

GROUP = 32  # inputs that share a scale, of int4 unless the configuration says


def check_package() -> None:
    """Raise UserError where torchao is not installed."""
    if importlib.util.find_spec("torchao") is None:
        raise UserError("kind quantised needs the package torchao (pip install torchao==0.18.0)")


def check_groups(model: Any, bits: int, group: int | None) -> None:
    """Raise UserError, naming the layer, where a group of weights that share a scale does not divide its inputs."""
    size = group or (GROUP if bits == 4 else None)
    output = model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not output}
    if not linear:
        raise UserError(f"{type(model).__name__} has no linear layers, which is what is quantised")
    for name, module in linear.items() if size else ():
        if module.in_features % size:
            raise UserError(f"int{bits}: {name} has {module.in_features} inputs, no multiple of group_size {size}")


def quantised_model(place: str, dtype: torch.dtype, bits: int, group: int | None, **kwargs: Any) -> Any:
    """The model of a folder (or hub id) with the weights of its linear layers in ``bits`` bits, in eval mode.

    Raises UserError where a group does not divide a layer's inputs.
    """
    check_package()  # before transformers asks, whose line names no configuration
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, PerRow
    from transformers import TorchAoConfig

    if bits == 8:
        how: Any = Int8WeightOnlyConfig(granularity=PerRow() if group is None else PerGroup(group))
    else:
        how = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group or GROUP))
    try:
        return AutoModelForCausalLM.from_pretrained(
            place, dtype=dtype, quantization_config=TorchAoConfig(how), trust_remote_code=False, **kwargs
        ).eval()
    except (ValueError, AssertionError, RuntimeError, NotImplementedError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"model {place}: cannot be quantised to int{bits} (group {group or 'a row'}): {why}") from error


def is_quantised(weight: torch.Tensor) -> bool:
    return hasattr(weight, "dequantize") and type(weight) not in (torch.Tensor, torch.nn.Parameter)


def losses(model: Any, original: Any) -> list[dict[str, Any]]:
    """A row for each rounded weight: its ``name``, ``rows``, ``columns``, ``relative_error`` (Frobenius norm of the
    difference over the original's, in float32) and the kind of tensor that torchao made of it."""
    plain, rows = dict(original.named_parameters()), []
    for name, weight in model.named_parameters():
        if is_quantised(weight):
            was = plain[name].detach().float()
            off = torch.linalg.norm(weight.dequantize().float() - was) / torch.linalg.norm(was)
            row = {"name": name, "rows": was.shape[0], "columns": was.shape[1]}
            rows.append({**row, "relative_error": float(off), "tensor": type(weight).__name__})
    return rows


def weights_bytes(folder: Path) -> int:
    """Bytes of a folder's safetensors files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
