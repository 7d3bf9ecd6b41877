"""Measure any command, and write the same sidecar as a stage."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from ..config.names import check_name
from ..errors import UserError
from ..store import atomic
from ..store import sidecar as schema
from .attempts import attempts_of, fold_attempts, per_token
from .co2 import co2e
from .config import MeterConfig
from .host import describe_hardware, describe_software
from .idle import IdleBaseline
from .meter import Meter
from .power import write_power

RECIPE = 1
PATIENCE_S = 20.0  # between SIGTERM and SIGKILL for a command that must end


class CommandFailed(Exception):
    """The command ended with another code than 0; its energy is recorded as wasted."""


#: Options whose value is a secret by their name, and values that are one by their form.
_SECRET_NAME = re.compile(r"(?i)(key|token(?!i|s)|secret|passw|credential|auth)")
_SECRET_VALUE = re.compile(r"(?i)^(hf_|sk-|ghp_|gho_|xox[abp]-|AKIA|eyJ)[\w.+/=-]{8,}")
REDACTED = "[redacted]"


def redacted(argv: Sequence[str]) -> list[str]:
    """A command line without what looks like a secret: ``--api-key X``, ``TOKEN=x``, ``hf_…``, ``user:password@``."""
    shown: list[str] = []
    hide = False
    for word in argv:
        name, equals, value = word.partition("=")
        if hide and not word.startswith("-"):
            word = REDACTED
        elif equals and value and (_SECRET_NAME.search(name) or _SECRET_VALUE.match(value)):
            word = f"{name}={REDACTED}"
        elif _SECRET_VALUE.match(word):
            word = REDACTED
        else:
            word = re.sub(r"(\w+://[^/\s:@]*):[^/\s@]+@", rf"\1:{REDACTED}@", word)
            word = re.sub(r"(?i)(bearer|basic)\s+\S+", rf"\1 {REDACTED}", word)
        hide = word.startswith("-") and "=" not in word and bool(_SECRET_NAME.search(word))
        shown.append(word)
    return shown


class Recording:
    """A measurement that is no stage of a workflow, with its sidecar at ``<out>/command/<name>/<version>/energy.json``.

    Every one is a version of its own, so nothing is ever overwritten. ``meter`` is entered and left by the caller; then
    ``write`` makes the record. ``argv`` is recorded less what looks like a secret. Raises UserError for a name that
    cannot be part of a path.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        out: str | Path,
        config: MeterConfig | None = None,
        idle: IdleBaseline | None = None,
    ) -> None:
        try:
            check_name(name)
        except ValueError as error:
            raise UserError(str(error)) from None
        self.name = name
        self.params = {"argv": redacted(argv), "folder": os.getcwd()}
        began = dt.datetime.now(dt.UTC).isoformat()
        unique = json.dumps([self.params, began, os.getpid()])
        self.version = hashlib.sha256(unique.encode()).hexdigest()[:12]
        self.attempts = Path(out) / "attempts" / "command" / name / self.version
        self.folder = Path(out) / "command" / name / self.version
        self.meter = Meter(self.attempts, config, {"stage": "command", "name": name, "version": self.version}, idle)

    def write(self, results: dict[str, Any], grid: dict[str, Any] | None = None) -> schema.Sidecar:
        """Write the power trace and the sidecar, which its owner alone may read, since a command's line is in it."""
        tries = attempts_of(self.attempts)
        energy, quality, tokens = fold_attempts(tries)
        record = schema.Sidecar(
            stage="command",
            name=self.name,
            version=self.version,
            recipe=RECIPE,
            params=self.params,
            attempts=tries,
            energy=energy,
            quality=quality,
            tokens=tokens,
            j_per_token=per_token(energy.gross_j, energy.reason, tokens),
            co2e=co2e(energy.gross_j, **(grid or {})),
            hardware=describe_hardware(),
            software=describe_software(),
            results=results,
            created_utc=dt.datetime.now(dt.UTC).isoformat(),
        )
        write_power(self.attempts, self.folder / schema.POWER_NAME)
        atomic.write_text(self.folder / schema.SIDECAR_NAME, schema.dump(record))
        os.chmod(self.folder / schema.SIDECAR_NAME, 0o600)
        return record


def run_command(
    argv: Sequence[str],
    out: str | Path = "results",
    name: str | None = None,
    config: MeterConfig | None = None,
    grid: dict[str, Any] | None = None,
    idle: IdleBaseline | None = None,
    live: TextIO | None = None,
) -> tuple[schema.Sidecar, int]:
    """Run ``argv`` under a Meter; (sidecar, exit code). The sidecar is written whatever the command's code (see
    ``Recording``). SIGTERM is passed on to the command, and the attempt closed as preempted. ``live``: a terminal, on
    whose last line watts, joules and seconds so far are shown.

    Raises UserError if the command cannot be started.
    """
    name = name or re.sub(r"[^A-Za-z0-9_.]+", "-", Path(argv[0]).name).strip("-") or "command"
    try:
        recording = Recording(name, argv, out, config, idle)
    except UserError as error:
        raise UserError(f"--{error}") from None
    code = 1
    try:
        with recording.meter:
            code = _run(argv, None if live is None else Live(recording.meter, live))
            if code != 0:
                raise CommandFailed(f"exit code {code}")
    except CommandFailed:
        pass
    except (SystemExit, KeyboardInterrupt) as stop:
        code = stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 130
    return recording.write({"exit_code": code}, grid), code


class Live:
    """A line of a terminal with the watts of the last second, and joules and seconds so far."""

    EVERY_S = 1.0

    def __init__(self, meter: Meter, out: TextIO) -> None:
        self.meter, self.out = meter, out
        self.first = self.last = meter.reading()

    def show(self) -> None:
        (t0, j0), (t, j) = self.last, self.meter.reading()
        self.last = (t, j)
        if j is None:
            text = "unknown so far"
        else:
            watts = f"{(j - j0) / (t - t0):.1f}" if j0 is not None and t > t0 else "–"
            text = f"{watts:>8} W  {j:>10.1f} J  {t - self.first[0]:>6.0f} s"
        self.out.write(f"\r\x1b[K{text}")
        self.out.flush()

    def clear(self) -> None:
        self.out.write("\r\x1b[K")
        self.out.flush()


def _run(argv: Sequence[str], live: Live | None = None) -> int:
    try:
        child = subprocess.Popen(list(argv))
    except OSError as error:
        raise UserError(f"{argv[0]}: cannot be started ({error.strerror})") from None
    try:
        while live is not None and child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(live.EVERY_S)
                break
            live.show()
        code = child.wait()
    except BaseException:
        _end(child)
        raise
    finally:
        if live is not None:
            live.clear()
    return code if code >= 0 else 128 - code  # as a shell reports a signal


def _end(child: subprocess.Popen) -> None:
    """Pass SIGTERM on, and wait: what the command spends while it ends is still measured."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
