"""Whether a model keeps apart packed examples, or pads and a prompt: asked of the model itself, as it was loaded."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch

from ..errors import UserError
from .ragged import set_sequences

#: Relative difference of states that rounding explains, by dtype; a leak changes them by tenths.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
LOOSE = 5e-2  # of 16-bit types


@torch.no_grad()
def leakage(model: Any) -> float:
    """Largest change of the second example's states when the first stands before it in a packed row, relative to the
    states' own size. Positions restart with each example, and there is no cache, as in training."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    device = model.get_input_embeddings().weight.device
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(0, vocabulary, (1, n), generator=generator).to(device) for n in (7, 9))
    positions = [torch.arange(x.shape[1], device=device)[None] for x in (first, second)]
    training = model.training
    model.eval()
    try:
        set_sequences(torch.tensor([0, 9], dtype=torch.int32, device=device), 9, 9)
        alone = model.base_model(input_ids=second, position_ids=positions[1], use_cache=False).last_hidden_state
        set_sequences(torch.tensor([0, 7, 16], dtype=torch.int32, device=device), 9, 16)
        packed = model.base_model(
            input_ids=torch.cat([first, second], 1), position_ids=torch.cat(positions, 1), use_cache=False
        ).last_hidden_state[:, 7:]
    finally:
        model.train(training)
    return float((packed - alone).float().norm() / alone.float().norm().clamp_min(1e-12))


def check_packing(model: Any) -> None:
    """Raise UserError if packed examples change each other's states."""
    try:
        found = leakage(model)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"training.packing: {type(model).__name__} takes no packed rows ({error})") from None
    if not found <= TOLERANCE.get(model.dtype, LOOSE):
        raise UserError(
            f"training.packing: {type(model).__name__} mixes packed examples (states change by {found:.0%}); set "
            "training.packing: false"
        )


#: What was asked of a model already: every benchmark and engine wants to know.
_IGNORES: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def ignores_pads(model: Any) -> bool:
    """Whether pads on the left leave a prompt's next tokens as they are. Recurrent models without a mask (RWKV) read
    them."""
    if model not in _IGNORES:
        _IGNORES[model] = _pads_change_nothing(model)
    return _IGNORES[model]


@torch.no_grad()
def _pads_change_nothing(model: Any) -> bool:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    device = model.get_input_embeddings().weight.device
    prompt = torch.randint(0, vocabulary, (1, 6), generator=torch.Generator().manual_seed(0)).to(device)
    padded = torch.cat([prompt[:, :1].expand(1, 3), prompt], 1)
    training = model.training
    model.eval()
    try:
        alone, beside = (
            model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=2, do_sample=False, use_cache=True, pad_token_id=0,
                return_dict_in_generate=True, output_logits=True,
            ).logits
            for ids, mask in ((prompt, torch.ones_like(prompt)), (padded, _after(padded, 3)))
        )  # fmt: skip
    finally:
        model.train(training)
    for one, other in zip(alone, beside, strict=False):
        change = float((one - other).float().norm() / one.float().norm().clamp_min(1e-12))
        if not change <= TOLERANCE.get(model.dtype, LOOSE):
            return False
        if int(one.argmax()) != int(other.argmax()):
            break  # from here on they say different things, by rounding
    return True


def _after(ids: torch.Tensor, pads: int) -> torch.Tensor:
    """The attention mask of rows that begin with ``pads`` pads."""
    mask = torch.ones_like(ids)
    mask[:, :pads] = 0
    return mask
