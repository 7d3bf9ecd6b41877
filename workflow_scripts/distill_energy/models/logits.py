"""From hidden states to logits: an output layer, a factor and a soft cap; and the check that this is all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UserError


@dataclass(frozen=True)
class LogitRule:
    """logits = cap · tanh(scale · (W·h + b) / cap), or scale · (W·h + b) without a ``cap``."""

    scale: float = 1.0
    cap: float | None = None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """In place, from W·h + b."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.cap:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits


def logit_rule(config: Any) -> LogitRule:
    """The rule that a model's configuration states, nested text configurations included.

    Cohere multiplies by ``logit_scale``, Falcon-H1 by ``lm_head_multiplier``, Granite divides by ``logits_scaling``,
    MiniCPM scales the states by ``dim_model_base``/``hidden_size``, Gemma caps with ``final_logit_softcapping``.
    """
    config = config.get_text_config() if hasattr(config, "get_text_config") else config

    def of(name: str) -> float | None:
        value = getattr(config, name, None)
        return float(value) if value else None

    scale = (of("logit_scale") or 1.0) * (of("lm_head_multiplier") or 1.0) / (of("logits_scaling") or 1.0)
    # transformers' own MiniCPM3 states the same factor in both ways.
    if (base := of("dim_model_base")) and (width := of("hidden_size")) and not of("logits_scaling"):
        scale *= base / width
    return LogitRule(scale, of("final_logit_softcapping"))


def output_layer(model: Any) -> torch.nn.Linear:
    """The plain linear output layer. Raises UserError if there is none."""
    layer = model.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear):
        raise UserError(f"{type(model).__name__}: its output layer is not a plain linear layer")
    return layer


@torch.no_grad()
def check_logits(model: Any) -> LogitRule:
    """The model's rule. Raises UserError if its own logits are not those of its states, output layer and rule.

    Asked of the model itself on a few tokens, so that an architecture that nobody has listed is refused too.
    """
    layer, rule = output_layer(model), logit_rule(model.config)
    device = model.get_input_embeddings().weight.device
    ids = torch.arange(8, device=device)[None] % model.get_input_embeddings().weight.shape[0]
    training = model.training
    model.eval()
    try:
        own = model(input_ids=ids, use_cache=False).logits[0].float()
        hidden = getattr(model.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
    finally:
        model.train(training)
    if hidden is None:
        raise UserError(f"{type(model).__name__}: its base model gives no states; this architecture is not supported")
    hidden = hidden[0]
    ours = torch.nn.functional.linear(
        hidden.to(layer.weight.device).float(), layer.weight.float(), None if layer.bias is None else layer.bias.float()
    )
    ours = rule.apply(ours).to(own.device)
    tolerance = 0.05 * max(1.0, float(own.abs().max()))
    if own.shape != ours.shape or not float((own - ours).abs().max()) <= tolerance:
        raise UserError(
            f"{type(model).__name__}: its logits are not those of its output layer (with {rule}); this architecture is "
            "not supported"
        )
    return rule
