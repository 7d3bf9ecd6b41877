"""Attention over examples of any lengths in one row, without a mask: PyTorch's variable-length flash attention.

transformers keeps packed examples apart by a dense mask, which takes the flash kernel away and grows with the square
of the row. Registered as an attention of its own; the sequences are said beside the model's arguments, since
not every architecture passes further ones through.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "ragged"

#: Of the model's call that runs, its backward pass included (which recomputes, in a thread of autograd's): starts, the
#: longest, and how many tokens there are.
_sequences: tuple[torch.Tensor, int, int] | None = None


def set_sequences(starts: torch.Tensor, longest: int, tokens: int) -> None:
    """Say where the sequences of the next call begin. starts: int32 [sequences + 1], offsets in the flattened rows;
    ``tokens`` is the last of them. Holds until it is said anew."""
    global _sequences
    _sequences = (starts, longest, tokens)


@torch.compiler.disable
def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence. query [b, heads, L, d]; key, value [b, kv heads, L, d] → [b, L, heads, d].

    Raises NotImplementedError for what the kernel has not (dropout, soft-caps, sinks).
    """
    if dropout or kwargs.get("softcap") or kwargs.get("s_aux") is not None or attention_mask is not None:
        raise NotImplementedError("dropout, soft-caps, sinks and masks")
    rows, heads, length, width = query.shape
    if _sequences is None or _sequences[2] != rows * length:
        raise RuntimeError(f"attention: the sequences of these {rows} × {length} tokens were not said")
    starts, longest, _ = _sequences
    flat = [x.transpose(1, 2).reshape(rows * length, x.shape[1], width) for x in (query, key, value)]
    if query.dtype == torch.float32:  # under autocast, a norm's output; the kernel has half precision only
        flat = [x.to(torch.get_autocast_dtype(query.device.type)) for x in flat]
    out = _kernel(*flat, starts, longest, scaling, sliding_window)
    return out.to(query.dtype).view(rows, length, heads, width), None


def _kernel(query, key, value, starts, longest: int, scaling: float | None, window: int | None) -> torch.Tensor:
    """``torch.nn.attention.varlen.varlen_attn``, whose arguments differ between versions."""
    from torch.nn.attention.varlen import varlen_attn

    takes = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {}
    if key.shape[1] != query.shape[1]:
        if "enable_gqa" in takes:
            options["enable_gqa"] = True
        else:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    if scaling is not None and "scale" in takes:
        options["scale"] = scaling
    elif scaling is not None and abs(scaling * query.shape[-1] ** 0.5 - 1) > 1e-6:
        raise NotImplementedError("a scale of its own")
    if "window_size" in takes:
        options["window_size"] = (-1 if window is None else window - 1, 0)
    elif window is not None:
        raise NotImplementedError("sliding windows")
    else:
        options["is_causal"] = True
    return varlen_attn(query, key, value, starts, starts, longest, longest, **options)


def attend_ragged(model: Any, autocast: bool) -> bool:
    """Give the model this attention if its device and type have the kernel and its architecture goes with it; whether.

    ``autocast``: it is trained under bfloat16 autocast.
    """
    weight = model.get_input_embeddings().weight
    half = autocast or weight.dtype in (torch.bfloat16, torch.float16)
    if not weight.is_cuda or not half or importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    return install(model, autocast)


def install(model: Any, autocast: bool) -> bool:
    """Set the attention and try it, forward and backward; what does not go with it keeps the attention that it has."""
    if not getattr(model, "_supports_sdpa", False):
        return False
    device = model.get_input_embeddings().weight.device
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    before = model.config._attn_implementation
    casting = torch.autocast(device.type, torch.bfloat16) if autocast else contextlib.nullcontext()
    try:
        model.set_attn_implementation(NAME)
        set_sequences(torch.tensor([0, 2, 5], dtype=torch.int32, device=device), 3, 5)
        ids = torch.zeros(1, 5, dtype=torch.long, device=device)
        positions = torch.tensor([[0, 1, 0, 1, 2]], device=device)
        with casting:
            states = model.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
        states.float().sum().backward()
        return True
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        model.set_attn_implementation(before)
        return False
    finally:
        model.zero_grad(set_to_none=True)
