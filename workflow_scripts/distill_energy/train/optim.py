"""Optimisers, precision of the weights, and stochastic rounding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.optimization import Adafactor

from ..config.training import Training
from ..models.sources import bf16_is_fast
from .sharded import as_dtensor, copy_full_, full_tensor, to_local

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BF16_SHIFT = 16  # bits that bfloat16 drops from a float32


@dataclass(frozen=True)
class Precision:
    """How weights are kept and multiplied. ``note`` says why it is not what was asked, or is None."""

    asked: str
    used: str
    weights: str  # dtype name of the weights as loaded
    autocast: bool
    stochastic: bool
    note: str | None = None


def resolve_precision(asked: str, device: str) -> Precision:
    """What ``asked`` becomes on ``device``: bfloat16 falls back to fp32 where the CPU has no support for it."""
    if asked != "fp32" and not bf16_is_fast(device):
        note = f"{asked} asked; this CPU has no native bfloat16, so fp32 was used"
        return Precision(asked, "fp32", "float32", autocast=False, stochastic=False, note=note)
    keeps_fp32 = asked in ("fp32", "bf16_autocast")
    return Precision(
        asked=asked,
        used=asked,
        weights="float32" if keeps_fp32 else "bfloat16",
        autocast=asked == "bf16_autocast",
        stochastic=asked == "bf16_stochastic",
    )


def build(parameters: Iterable[Any], training: Training, scale_parameter: bool = True) -> torch.optim.Optimizer:
    """The optimiser that ``training`` names, over ``parameters``; its rate is set at each step.

    Adafactor (Shazeer & Stern 2018) without relative steps, as the paper uses it: the rate is given, and with
    ``scale_parameter`` each tensor's step is that rate times the tensor's root mean square.
    """
    parameters = list(parameters)
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)

    return _Adafactor(
        parameters,
        lr=rate,
        weight_decay=decay,
        scale_parameter=scale_parameter,
        relative_step=False,
        warmup_init=False,
    )


class _Adafactor(Adafactor):
    """transformers' Adafactor, whose step asks the GPU nothing: Python's ``max`` of a tensor waits for its value."""

    @staticmethod
    def _get_lr(param_group: dict[str, Any], param_state: dict[str, Any]) -> Any:
        if param_group["relative_step"] or not param_group["scale_parameter"]:
            return Adafactor._get_lr(param_group, param_state)
        return param_state["RMS"].clamp_min(param_group["eps"][1]) * param_group["lr"]


class Plain:
    """An optimiser over the weights themselves; the rate is given at each step."""

    def __init__(self, parameters: Iterable[Any], training: Training, scale_parameter: bool = True) -> None:
        self.optimizer = build(parameters, training, scale_parameter)

    def step(self, rate: float, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Of this process's part of the weights."""
        state = self.optimizer.state_dict()
        state["state"] = {
            key: {name: to_local(value) for name, value in values.items()} for key, values in state["state"].items()
        }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)
        for weight, values in self.optimizer.state.items():
            for name, value in values.items():
                if hasattr(value, "dim") and value.dim() > 0:
                    values[name] = as_dtensor(value, weight)


class TensorByTensor:
    """Weights updated one tensor after the other, in a float32 copy that lives only during its own update.

    Serves two ends at the memory of the largest tensor. bfloat16 weights without a master copy: the result is rounded
    up or down at random, so that the expected value of a rounded weight is the exact one and updates below half a unit
    in the last place are not lost (Gupta et al. 2015). And split weights with Adafactor, whose statistics run over
    whole rows and columns: the tensor is gathered, and its small factored state is kept by every process.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        training: Training,
        seed: int,
        scale_parameter: bool = True,
        stochastic: bool = True,
        gather: bool = False,
    ) -> None:
        self.seed, self.stochastic, self.gather = seed, stochastic, gather
        self.weights = list(parameters)
        self.shells = [torch.nn.Parameter(torch.empty(0, dtype=torch.float32, device=w.device)) for w in self.weights]
        self.optimizers = [build([shell], training, scale_parameter) for shell in self.shells]

    def step(self, rate: float, step: int) -> None:
        """``step`` seeds the rounding, so that a resumed run rounds as an uninterrupted one."""
        part = full_tensor if self.gather else to_local
        random = torch.Generator(device=self.weights[0].device)
        random.manual_seed((self.seed * 1_000_003 + step) % 2**63)
        for weight, shell, optimizer in zip(self.weights, self.shells, self.optimizers, strict=True):
            if weight.grad is None:
                continue
            shell.data = part(weight.detach()).to(torch.float32, copy=True)
            shell.grad = part(weight.grad).float()
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            values = stochastic_round(shell.data, random) if self.stochastic else shell.data
            if self.gather:
                copy_full_(weight.data, values)
            else:
                to_local(weight.data).copy_(values)
            shell.grad = None
            shell.data = torch.empty(0, dtype=torch.float32, device=values.device)

    def state_dict(self) -> dict[str, Any]:
        return {"each": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimizer, each in zip(self.optimizers, state["each"], strict=True):
            optimizer.load_state_dict(each)


def stochastic_round(values: Tensor, random: torch.Generator | None = None) -> Tensor:
    """Round float32 to bfloat16, up with a probability equal to the share of the way to the next value.

    A bfloat16 is the upper half of a float32: adding a uniform 16-bit integer to the lower half carries into the upper
    one with just that probability.
    """
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << BF16_SHIFT, bits.shape, dtype=torch.int32, device=bits.device, generator=random)
    rounded = (bits + noise).bitwise_and_(-(1 << BF16_SHIFT)).view(torch.float32)
    return torch.where(torch.isfinite(values), rounded, values).to(torch.bfloat16)


class ChangeProbe:
    """Share of the weights that a step changes, from samples of a few tensors."""

    TENSORS, VALUES = 8, 16384

    def __init__(self, parameters: Iterable[Any]) -> None:
        weights = [w for w in parameters if w.requires_grad and w.dim() >= 2] or list(parameters)
        stride = max(1, len(weights) // self.TENSORS)
        self.weights = weights[::stride][: self.TENSORS]
        self.before: list[Tensor] = []

    def start(self) -> None:
        """Note the values before a step."""
        self.before = [self._sample(w).clone() for w in self.weights]

    def share(self) -> float:
        """Share of the noted values that differ now, in 0 … 1."""
        changed = sum(int((self._sample(w) != b).sum()) for w, b in zip(self.weights, self.before, strict=True))
        return changed / max(1, sum(b.numel() for b in self.before))

    def _sample(self, weight: Tensor) -> Tensor:
        flat = to_local(weight.detach()).reshape(-1)
        return flat[:: max(1, flat.numel() // self.VALUES)]
