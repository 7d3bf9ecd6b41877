"""Trainer callbacks: joules a step in the logs, and a sidecar at the end.

``EnergyCallback`` is transformers', ``LightningEnergyCallback`` is Lightning's; each imports its library when it is
looked up.
"""

from __future__ import annotations

import functools
from typing import Any

from .measure import measure


class _Steps:
    """A measurement with a count of steps: what both libraries' callbacks share."""

    def __init__(self, name: str, out: Any, options: dict[str, Any]) -> None:
        self._make = functools.partial(measure, name, out, **options)
        self.measurement: measure | None = None
        self._last: tuple[int, float] | None = None

    def begin(self) -> None:
        self.measurement = self._make().__enter__()
        self._last = None

    def at(self, step: int) -> dict[str, float]:
        """``energy_j`` so far and ``energy_j_per_step`` since the last call; empty while the energy is unknown."""
        joules = self.measurement.joules() if self.measurement is not None else None
        if joules is None:
            return {}
        found = {"energy_j": joules}
        if self._last is not None and step > self._last[0]:
            found["energy_j_per_step"] = (joules - self._last[1]) / (step - self._last[0])
        self._last = (step, joules)
        return found

    def end(self, error: BaseException | None = None) -> None:
        if self.measurement is not None and self.measurement.record is None:
            self.measurement.__exit__(None if error is None else type(error), error, None)


def _transformers_callback() -> type:
    from transformers import TrainerCallback

    class EnergyCallback(TrainerCallback):
        """``Trainer(callbacks=[EnergyCallback("fine-tune")])``: ``energy_j`` (J so far) and ``energy_j_per_step`` in
        every log, tokens where the Trainer counts them (``include_num_input_tokens_seen``), a sidecar at the end.

        Arguments as of :class:`~distill_energy.measure.measure`. Rank 0 measures its own process and every GPU that it
        sees. If training raises, the attempt is closed as ``killed`` when the process ends.
        """

        def __init__(self, name: str = "training", out: Any = "results", **options: Any) -> None:
            self.steps = _Steps(name, out, options)

        @property
        def measurement(self) -> measure | None:
            return self.steps.measurement

        def on_train_begin(self, args, state, control, **kwargs) -> None:
            if state.is_world_process_zero:
                self.steps.begin()
                self.steps.at(state.global_step)

        def on_log(self, args, state, control, logs=None, **kwargs) -> None:
            found = self.steps.at(state.global_step)
            if logs is not None:
                logs.update(found)
            if state.log_history:
                state.log_history[-1].update(found)

        def on_train_end(self, args, state, control, **kwargs) -> None:
            measurement = self.steps.measurement
            seen = int(getattr(state, "num_input_tokens_seen", 0) or 0)
            if measurement is not None and seen:
                measurement.add_tokens("processed", seen)
            self.steps.end()

    return EnergyCallback


def _lightning_callback() -> type:
    try:
        from lightning.pytorch.callbacks import Callback
    except ImportError:
        from pytorch_lightning.callbacks import Callback

    class LightningEnergyCallback(Callback):
        """``Trainer(callbacks=[LightningEnergyCallback("fine-tune")])``, of ``lightning`` or ``pytorch_lightning``: as
        ``EnergyCallback``, logged with each batch; an exception closes the attempt as ``failed``."""

        def __init__(self, name: str = "training", out: Any = "results", **options: Any) -> None:
            self.steps = _Steps(name, out, options)

        @property
        def measurement(self) -> measure | None:
            return self.steps.measurement

        def on_fit_start(self, trainer, pl_module) -> None:
            if trainer.is_global_zero:
                self.steps.begin()
                self.steps.at(trainer.global_step)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            if found := self.steps.at(trainer.global_step):
                pl_module.log_dict(found, rank_zero_only=True)

        def on_fit_end(self, trainer, pl_module) -> None:
            self.steps.end()

        def on_exception(self, trainer, pl_module, exception) -> None:
            self.steps.end(exception)

    return LightningEnergyCallback


_MAKE = {"EnergyCallback": _transformers_callback, "LightningEnergyCallback": _lightning_callback}
__all__ = sorted(_MAKE)


@functools.cache
def _made(name: str) -> type:
    return _MAKE[name]()


def __getattr__(name: str) -> Any:
    if name not in _MAKE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _made(name)
