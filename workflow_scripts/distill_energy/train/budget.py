"""How much evaluation a training may contain: at most a tenth of its energy."""

from __future__ import annotations

import math

from ..config.training import Training

#: Shares of a training's cost for the data set's own answers (every pipeline, same rows) and for a pipeline's own.
GOLD_SHARE, OWN_SHARE = 0.06, 0.035
#: Cost of training on an example over that of evaluating on it: forward, twice that backward, and the update.
TRAIN_OVER_EVALUATE = 3.5


def evaluation_steps(training: Training, every: int | None = None) -> list[int]:
    """Steps (counted from 1) after which the student is evaluated: each ``every`` (None: the recipe's), the last."""
    last, every = training.max_steps, every or training.eval_every
    steps = list(range(every, last + 1, every))
    return steps if steps and steps[-1] == last else [*steps, last]


def evaluation_rows(training: Training, share: float) -> int:
    """Validation examples an evaluation so that all of them cost ``share`` of the training; at least 1.

    A function of the shared recipe alone, so that every pipeline evaluates on the same rows.
    """
    trained = training.max_steps * training.batch_size * TRAIN_OVER_EVALUATE
    return max(1, math.floor(share * trained / len(evaluation_steps(training))))
