"""A model of the right shape with random weights: what a rate of tokens and joules needs, and nothing to download."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ..errors import UserError


def config_of(values: dict[str, Any]) -> Any:
    """A transformers configuration from its values, ``model_type`` among them. Raises UserError in one line."""
    values = {key: value for key, value in values.items() if value is not None}
    try:
        return AutoConfig.for_model(values.pop("model_type"), **values)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"shape: {' '.join(str(error).split())[:200]}") from None


def shaped_model(values: dict[str, Any], dtype: torch.dtype, device: str) -> Any:
    """A causal LM with random weights, made on ``device`` in ``dtype``: 32 billion parameters take seconds on a GPU.

    Raises UserError where transformers has no such model.
    """
    config = config_of(values)
    try:
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config, dtype=dtype)
    except ValueError as error:
        raise UserError(f"shape: {' '.join(str(error).split())[:200]}") from None
