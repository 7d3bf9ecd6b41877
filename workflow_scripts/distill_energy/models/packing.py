"""Whether a model keeps packed examples apart: asked of the model itself, with its attention as it was loaded."""

from __future__ import annotations

from typing import Any

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
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"training.packing: {type(model).__name__} takes no packed rows ({error})") from None
    if not found <= TOLERANCE.get(model.dtype, LOOSE):
        raise UserError(
            f"training.packing: {type(model).__name__} mixes packed examples (states change by {found:.0%}); set "
            "training.packing: false"
        )
