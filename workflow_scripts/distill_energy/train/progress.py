"""Live progress: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

QUIET_INTERVAL_S = 30.0


class Progress:
    """Shows step, loss, tokens/s, J/token and the time left. ``update`` is cheap and throttles itself."""

    def __init__(self, total: int, initial: int, name: str, log: Callable[[str], None], active: bool = True) -> None:
        self.total, self.log, self.name, self.active = total, log, name, active
        self.start, self.first, self.last = time.monotonic(), initial, time.monotonic()
        self.bar: Any = None
        if active and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=initial, desc=name, unit="step", mininterval=0.5, file=sys.stderr)

    def update(self, step: int, loss: float, tokens_per_s: float, joules_per_token: float | None) -> None:
        """Called after each optimiser step (``step`` done)."""
        if not self.active:
            return
        energy = "J/token unknown" if joules_per_token is None else f"{joules_per_token:.3g} J/token"
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_s:,.0f} tok/s, {energy}", refresh=False)
            self.bar.update(step - self.bar.n)
            return
        now = time.monotonic()
        if now - self.last >= QUIET_INTERVAL_S:
            self.last = now
            left = (now - self.start) / max(1, step - self.first) * (self.total - step)
            self.log(
                f"{self.name}: step {step}/{self.total}, loss {loss:.3f}, {tokens_per_s:,.0f} tok/s, {energy}, "
                f"{left:,.0f} s left"
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
