"""Measure a part of your own program: ``with measure("fine-tune") as m: …``, or ``@measure("fine-tune")``.

Importing it loads nothing of the meter, of torch or of pandas; the first measurement does.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any


class measure(contextlib.ContextDecorator):
    """Energy of this process and its children, from entry to exit, on every GPU that it sees and on the CPU.

    ``name``: of the measurement (letters, digits, ``_``, ``.`` and single ``-``); ``out``: a results folder, in which
    the sidecar lies at ``command/<name>/<version>/energy.json``, each measurement a version of its own; None keeps no
    record. ``interval_s``: seconds between samples; ``cpu``: ``auto`` (RAPL, else CodeCarbon's estimate), ``rapl``,
    ``codecarbon``, ``off``; ``node``: a meter of the whole node, such as ``{"command": "…"}`` (``energy.node`` of a
    configuration); ``grid``: arguments of ``co2e`` such as ``{"country": "FRA"}``; ``quiet``: print nothing.

    Inside, ``m.joules()`` is the running total (J, None if unknown), ``m.phase(name)`` books a part apart, and
    ``m.add_tokens(kind, n)`` counts. Afterwards ``m.energy_j``, ``m.source`` (``measured``, ``estimated`` or
    ``unavailable``), ``m.seconds``, ``m.reason`` (why ``energy_j`` is None) and ``m.record`` (the sidecar).

    A decorated function's measurement is its own at each call, and is not known to it. Measurements do not nest on one
    GPU. An exception passes through; its joules are recorded as wasted. Raises UserError for a bad name or setting.
    """

    def __init__(
        self,
        name: str = "measured",
        out: str | Path | None = "results",
        *,
        interval_s: float = 0.5,
        cpu: str = "auto",
        node: dict[str, Any] | None = None,
        grid: dict[str, Any] | None = None,
        quiet: bool = False,
    ) -> None:
        self.name, self.out, self.quiet = name, out, quiet
        self.settings = {"interval_s": interval_s, "cpu": cpu, "node": node}
        self.grid = grid
        self.energy_j: float | None = None
        self.source: str | None = None
        self.seconds: float | None = None
        self.reason: str | None = "the measurement has not ended"
        self.record: Any = None
        self._open: Any = None

    def _recreate_cm(self) -> measure:
        return measure(self.name, self.out, **self.settings, grid=self.grid, quiet=self.quiet)

    def __enter__(self) -> measure:
        from .energy.command import Recording
        from .energy.config import MeterConfig

        self._stack = contextlib.ExitStack()
        out = self.out
        if out is None:
            import tempfile

            out = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="distill-energy-"))
        config = MeterConfig(**self.settings)
        try:
            self._open = Recording(self.name, sys.argv, out, config)
            self._open.meter.__enter__()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        from .store.sidecar import wall_seconds

        with self._stack:
            self._open.meter.__exit__(kind, error, trace)
            self.record = self._open.write({"exception": kind.__name__ if kind else None}, self.grid)
        energy = self.record.energy
        self.energy_j, self.source, self.reason = energy.gross_j, energy.source, energy.reason
        self.seconds = wall_seconds(self.record.attempts)
        if not self.quiet:
            print(self, file=sys.stderr, flush=True)

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.name}: {self.reason}"
        spent = f"unknown ({self.reason})" if self.energy_j is None else f"{self.energy_j:.1f} J ({self.source})"
        where = "" if self.out is None else f"; {self._open.folder / 'energy.json'}"
        return f"{self.name}: {spent} in {self.seconds:.1f} s{where}"

    def joules(self) -> float | None:
        """J so far; after the end, the measurement's."""
        return self._open.meter.joules() if self._open is not None else None

    def phase(self, name: str) -> Any:
        """A context manager that books a part apart; after it, its handle has ``joules`` and ``wall_s``."""
        return self._open.meter.phase(name)

    def add_tokens(self, kind: str, n: int) -> None:
        """Count tokens of ``kind``: processed, loss, generated or padding."""
        self._open.meter.add_tokens(kind, n)
