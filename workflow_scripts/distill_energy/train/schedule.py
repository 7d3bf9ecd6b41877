"""Learning rate as a pure function of the optimiser step, so that resuming needs no state."""

from __future__ import annotations

import math


def learning_rate(
    step: int, peak: float, warmup_steps: int, max_steps: int, schedule: str = "cosine", stretch: int = 1
) -> float:
    """Rate of optimiser step ``step`` (from 0).

    Linear to ``peak`` over ``warmup_steps`` (the first step is not at 0), then a cosine that reaches 0 as the last step
    ends (Loshchilov & Hutter 2017, eq. 5, one cycle), or constant. ``stretch`` > 1 makes the cycle that
    many times longer than the training, a known slip that keeps the rate near its peak (see ``reference.py``).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    total = max_steps * stretch
    progress = (step - warmup_steps) / max(1, total - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
