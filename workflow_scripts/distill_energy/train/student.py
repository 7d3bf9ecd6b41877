"""The student as the loop sees it: base model to hidden states, output layer and loss over label rows only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UserError
from ..kd import losses
from ..kd.losses.ce import ce_loss
from ..models.logits import check_logits
from ..models.ragged import set_sequences

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.logits import LogitRule
    from ..pipelines import Pipeline
    from ..pipelines.base import Settings
    from .batching import Batch


class Student(torch.nn.Module):
    """A causal LM with its loss. ``forward`` so that data-parallel wrappers see one call a micro-batch.

    ``rule``: of its logits, where that was checked elsewhere.
    """

    def __init__(
        self, model: Any, pipeline: Pipeline, settings: Settings, autocast: bool, rule: LogitRule | None = None
    ) -> None:
        super().__init__()
        self.model = model  # the LM, perhaps wrapped by peft
        self.objective, self.settings, self.autocast = losses.get(pipeline.loss), settings, autocast
        rule = rule or check_logits(self.lm)
        self.scale = rule.scale  # of the states, and so of the logits
        self.settings = replace(settings, softcap=rule.cap)

    @property
    def lm(self) -> Any:
        """The causal LM without peft's wrapper (adapter layers stay inside)."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def states_to(self, batch: Batch, use: Callable[[Tensor, Any, Tensor | None, float | None], Any]) -> Any:
        """``use`` of the states [labels, H] before the batch's labels, the output layer, its bias and soft-cap."""
        lm = self.lm
        kind = batch.input_ids.device.type
        casting = torch.autocast(kind, dtype=torch.bfloat16) if self.autocast else contextlib.nullcontext()
        with casting:
            hidden = states_before_labels(lm, batch)
            head = lm.get_output_embeddings()
            bias = head.bias
            if self.scale != 1.0:
                hidden, bias = hidden * self.scale, None if bias is None else bias * self.scale
            return use(hidden, head, bias, self.settings.softcap)

    def forward(self, batch: Batch, teacher: Any = None, evaluate: bool = False) -> tuple[Tensor, ...]:
        """Sums over the micro-batch's labels: (total, cross-entropy, KL); the total is what to differentiate.

        With ``evaluate`` all three are the cross-entropy on the labels, whatever the pipeline.
        """
        if evaluate:
            # Detached: the fused loss makes its gradients as it goes, wherever one is asked for.
            ce = self.states_to(
                batch,
                lambda hidden, head, bias, cap: (
                    ce_loss(hidden.detach(), head.weight.detach(), batch.labels, bias=bias, softcap=cap).loss
                ),
            )
            return ce, ce, ce
        parts = self.states_to(
            batch,
            lambda hidden, head, bias, cap: self.objective(
                hidden, head.weight, batch.labels, bias, teacher, self.settings
            ),
        )
        kl = parts.kl if parts.kl is not None else torch.full_like(parts.ce, torch.nan)
        return parts.total, parts.ce, kl


def states_before_labels(lm: Any, batch: Batch) -> Tensor:
    """Last hidden states [labels, H] at the positions that predict a label.

    Without a cache: only then does transformers keep packed examples apart by their positions.
    """
    set_sequences(batch.starts, batch.longest, batch.input_ids.numel())
    output = lm.base_model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    return output.last_hidden_state.flatten(0, 1).index_select(0, batch.before)


def add_adapter(model: Any, adapter: Any) -> Any:
    """Wrap ``model`` for low-rank training (peft). Raises UserError for a bad target."""
    from peft import LoraConfig, TaskType, get_peft_model

    targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
    output = model.get_output_embeddings()
    shared = [output]
    inner = model.get_input_embeddings()
    if getattr(inner, "weight", None) is getattr(output, "weight", ...):
        shared.append(inner)  # tied: what is merged into one changes the other
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if any(module is s for s in shared)}
    if not isinstance(targets, str) and names & {t.rpartition(".")[2] for t in targets}:
        raise UserError(
            f"lora.targets: {', '.join(sorted(names))}: the output layer's weight, which the fused loss reads as it is"
        )
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"lora: {error}") from None
