"""The output layer in float32 at chosen positions: arg max, log-normaliser and logits of given tokens.

bfloat16 logits tie often enough to change an arg max, and a whole (positions × vocabulary) matrix is the largest tensor
of an evaluation; so the layer is applied in float32 over blocks of the vocabulary, to the positions that are asked for.
"""

from __future__ import annotations

from typing import Any

import torch

from ..models.logits import logit_rule

BLOCK = 16_384  # vocabulary entries at a time
ROWS = 1_024  # positions at a time


class Head:
    """The output layer of a causal language model, with the logit scale or soft cap that its architecture applies."""

    def __init__(self, model: Any, watched: Any = None) -> None:
        """``watched`` counts the rows that go through the layer (``models.flops.Operations.watch``)."""
        layer = model.get_output_embeddings()
        self.weight = layer.weight  # (vocabulary, width)
        self.bias = getattr(layer, "bias", None)
        self.rule = logit_rule(model.config)
        self.watched = watched

    def _finish(self, logits):
        return self.rule.apply(logits)

    def summary(self, hidden):
        """(arg max int64, log-sum-exp float32), each of shape (n,), for hidden states of shape (n, width)."""
        if self.watched is not None:
            self.watched.rows += hidden.shape[0]
        parts = [self._rows(chunk) for chunk in hidden.split(ROWS)]
        if not parts:
            return hidden.new_zeros(0, dtype=torch.long), hidden.new_zeros(0, dtype=torch.float32)
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _rows(self, hidden):
        hidden = hidden.float()
        best = normaliser = where = None
        for start in range(0, self.weight.shape[0], BLOCK):
            logits = hidden @ self.weight[start : start + BLOCK].float().T
            if self.bias is not None:
                logits += self.bias[start : start + BLOCK].float()
            logits = self._finish(logits)
            top, index = logits.max(dim=-1)
            total = logits.logsumexp(dim=-1)
            if best is None:
                best, where, normaliser = top, index, total
            else:
                better = top > best  # strict: the first of equal logits wins, as in a single arg max
                where = torch.where(better, index + start, where)
                best = torch.maximum(best, top)
                normaliser = torch.logaddexp(normaliser, total)
        return where, normaliser

    def logits_of(self, hidden, tokens):
        """Logit of one token a position: hidden (n, width), tokens int64 (n,) → float32 (n,)."""
        logits = (hidden.float() * self.weight[tokens].float()).sum(dim=-1)
        if self.bias is not None:
            logits = logits + self.bias[tokens].float()
        return self._finish(logits)
