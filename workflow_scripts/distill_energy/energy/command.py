"""Measure any command, and write the same sidecar as a stage."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config.names import check_name
from ..errors import UserError
from ..store import atomic
from ..store import sidecar as schema
from .attempts import attempts_of, fold_attempts
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


def run_command(
    argv: Sequence[str],
    out: str | Path = "results",
    name: str | None = None,
    config: MeterConfig | None = None,
    grid: dict[str, Any] | None = None,
    idle: IdleBaseline | None = None,
) -> tuple[schema.Sidecar, int]:
    """Run ``argv`` under a Meter; (sidecar, exit code). The sidecar is written whatever the command's code.

    It lies at ``<out>/command/<name>/<version>/energy.json``; every run is a version of its own, so nothing is ever
    overwritten. SIGTERM is passed on to the command, and the attempt closed as preempted.

    Raises UserError if the command cannot be started.
    """
    if name is not None:
        try:
            check_name(name)
        except ValueError as error:
            raise UserError(f"--{error}") from None
    name = name or re.sub(r"[^A-Za-z0-9_.]+", "-", Path(argv[0]).name).strip("-") or "command"
    params = {"argv": list(argv), "folder": os.getcwd()}
    began = dt.datetime.now(dt.UTC).isoformat()
    version = hashlib.sha256(json.dumps([params, began, os.getpid()]).encode()).hexdigest()[:12]
    attempts = Path(out) / "attempts" / "command" / name / version
    folder = Path(out) / "command" / name / version
    code = 1
    meter = Meter(attempts, config, {"stage": "command", "name": name, "version": version}, idle)
    try:
        with meter:
            code = _run(argv)
            if code != 0:
                raise CommandFailed(f"exit code {code}")
    except CommandFailed:
        pass
    except (SystemExit, KeyboardInterrupt) as stop:
        code = stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 130
    tries = attempts_of(attempts)
    energy, quality, tokens = fold_attempts(tries)
    record = schema.Sidecar(
        stage="command",
        name=name,
        version=version,
        recipe=RECIPE,
        params=params,
        attempts=tries,
        energy=energy,
        quality=quality,
        tokens=tokens,
        co2e=co2e(energy.gross_j, **(grid or {})),
        hardware=describe_hardware(),
        software=describe_software(),
        results={"exit_code": code},
        created_utc=dt.datetime.now(dt.UTC).isoformat(),
    )
    write_power(attempts, folder / schema.POWER_NAME)
    atomic.write_text(folder / schema.SIDECAR_NAME, schema.dump(record))
    return record, code


def _run(argv: Sequence[str]) -> int:
    try:
        child = subprocess.Popen(list(argv))
    except OSError as error:
        raise UserError(f"{argv[0]}: cannot be started ({error.strerror})") from None
    try:
        code = child.wait()
    except BaseException:
        _end(child)
        raise
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
