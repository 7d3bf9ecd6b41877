"""The loop's own state, and the best weights so far."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class State:
    """Where a training is. Plain values, so that a checkpoint holds it as JSON does."""

    step: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    padding: int = 0
    seconds: float = 0.0
    evaluation_s: float = 0.0
    evaluation_j: float | None = 0.0  # None: unknown
    checkpoint_s: float = 0.0
    best_loss: float = math.inf
    best_gold: float = math.inf
    best_step: int = 0
    anchor: float = math.inf  # the loss that an improvement must beat by ε
    stale: int = 0  # evaluations in a row that did not
    losses: list[float] = field(default_factory=list)  # of every evaluation
    stop_reason: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def note_evaluation(self, own: float, gold: float, epsilon: float) -> bool:
        """Count an evaluation towards stopping; returns whether its weights are the best so far.

        The best weights are those of the lowest loss; patience asks for more, a fall by ε since it last restarted.
        """
        self.losses.append(own)
        if own < self.anchor - epsilon:
            self.anchor, self.stale = own, 0
        else:
            self.stale += 1
        if own < self.best_loss:
            self.best_loss, self.best_gold, self.best_step = own, gold, self.step
            return True
        return False

    def add_evaluation_joules(self, joules: float | None) -> None:
        """Add an evaluation's energy; one that is unknown makes the sum unknown."""
        known = joules is not None and self.evaluation_j is not None
        self.evaluation_j = self.evaluation_j + joules if known else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "State":
        return cls(**data)


class BestWeights:
    """The weights of the best evaluation, copied to the host's memory as they will be saved (bfloat16).

    A checkpoint holds them, so that a kill after the best step loses nothing.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.weights: dict[str, Any] | None = None

    def keep(self, learner: Any, step: int) -> None:
        """Take the weights as they are now. Every process calls it: sharded weights are gathered together."""
        self.step, self.weights = step, learner.export()

    def state_dict(self) -> dict[str, Any] | None:
        return None if self.step is None else {"step": self.step, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        if state is not None:
            self.step, self.weights = state["step"], state["weights"]
