"""The Meter: what a stage holds while it is measured."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..store.sidecar import Attempt, Source, total
from . import journal
from .attempts import UNSAVED, read_attempt
from .board import TOKEN_KINDS, Board
from .config import MeterConfig
from .exclusive import FOLDER_VARIABLE, DeviceLocks
from .identity import attempt_identity
from .idle import IdleBaseline

REPLY_S = 30.0
MAX_RESTARTS = 5
DIED = "the sampler ended before the stage"


class PhaseHandle:
    """What ``with meter.phase(name) as phase`` gives. After the block ``joules`` and its ``source`` are known, or
    ``joules`` is None and ``reason`` says why."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.joules: float | None = None
        self.wall_s: float | None = None
        self.source: Source | None = None
        self.reason: str | None = None


class Meter:
    """Measures the energy of this process's work from entry to exit.

    Start-up (driver, CodeCarbon) lies before the window. While open, SIGTERM ends the main thread with
    ``SystemExit(143)`` and the attempt is closed as ``preempted``. Nothing that happens to the sampler stops the
    stage: the attempt then says so in its flags.

    Raises UserError if the attempt's folder cannot be made, or the visible GPUs cannot be told apart.
    """

    def __init__(
        self,
        attempts_dir: str | Path,
        config: MeterConfig | None = None,
        identity: dict[str, Any] | None = None,
        idle: IdleBaseline | None = None,
    ) -> None:
        self.attempts_dir = Path(attempts_dir)
        self.config = config or MeterConfig()
        self.identity = dict(identity or {})
        self.idle = idle
        self.attempt: Attempt | None = None
        self.start_up_s: float | None = None  # outside the window
        self.waited_s = 0.0
        self._lock = threading.RLock()
        self._token_lock = threading.Lock()
        self._locks = DeviceLocks()
        self._board: Board | None = None
        self._sampler: subprocess.Popen | None = None
        self._buffer = b""
        self._phases = 0
        self._preempted = False
        self._old_handler: Any = None
        self._handling = False
        self._sent = 0
        self._closing = False
        self._final: float | None = None
        self._restarts = 0

    # -- entry and exit

    def __enter__(self) -> "Meter":
        self._pid = os.getpid()
        try:
            return self._enter()
        except BaseException:
            self._restore_handler()
            self._locks.release()
            with self._lock:
                self._closing = True
                if self._sampler is not None:
                    self._lost()
            raise

    def _enter(self) -> "Meter":
        began = time.monotonic()
        self._who = attempt_identity(time.time())
        self.folder = self._make_folder()
        self._board = Board.create()
        ready = self._start_sampler()
        devices = ready["ready"]
        estimated = any(d["kind"] == "codecarbon" and d["component"] == "cpu" for d in devices)
        by_rule = any(d.get("share", 1.0) != 1.0 for d in devices)
        self._source: Source = "estimated" if estimated or by_rule else "measured"
        gpus = []  # of a GPU in slices, each has its own lock
        for device in devices:
            if device["component"] == "gpu":
                gpus += (device.get("mig") or device["device"]).split(", ")
        if gpus and self.config.exclusive:
            try:
                self.waited_s = self._locks.acquire(gpus, lambda text: print(text, file=sys.stderr, flush=True))
            except OSError as error:
                raise UserError(
                    f"{self._locks.folder}: GPU locks cannot be made there ({error.strerror}); "
                    f"name another folder of this host in {FOLDER_VARIABLE}"
                ) from None
        self._install_handler()
        go = self._command({"c": "go"})
        if go is None:
            raise UserError(f"the sampler ended at its start: see {self.folder / 'sampler.log'}")
        with contextlib.suppress(OSError):  # a full disk: the journal itself then says it
            (self.folder / journal.BEGUN).touch()
        threading.Thread(target=self._watch, args=(self._sampler,), daemon=True, name="distill-energy-watch").start()
        self.start_up_s = time.monotonic() - began - self.waited_s
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if os.getpid() != self._pid:
            return  # a forked child that unwinds through our frame: the attempt is its parent's
        self._restore_handler()
        if kind is None:
            outcome, reason = "completed", None
        elif self._preempted:
            outcome, reason = "preempted", "SIGTERM"
        else:
            outcome, reason = "failed", f"{kind.__name__}: {error}".splitlines()[0][:300]
        self._stop(outcome, reason)
        self._locks.release()
        self.attempt = read_attempt(self.folder / journal.NAME)
        self._final = total(self.attempt.components)[0] if self.attempt else None
        board, self._board = self._board, None
        board.close()

    def _make_folder(self) -> Path:
        name = self._who["id"]
        for suffix in range(1000):
            self._who["id"] = name if not suffix else f"{name}-{suffix}"
            folder = self.attempts_dir / self._who["id"]
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                if self.attempts_dir.is_dir():
                    continue
                raise UserError(f"{self.attempts_dir}: cannot be made, a file is in the way") from None
            except OSError as error:
                raise UserError(f"{folder}: the attempt's folder cannot be made ({error.strerror})") from None
        raise UserError(f"{self.attempts_dir}: no free attempt name")

    def _start_sampler(self, resume: bool = False) -> dict[str, Any]:
        root = str(Path(__file__).resolve().parents[2])
        env = dict(os.environ)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
        settings = {
            **self.config.as_dict(),
            "attempt": self._who,
            "identity": self.identity,
            "journal": str((self.folder / journal.NAME).resolve()),
            "board_fd": self._board.fd,
            "idle": self.idle.as_dict() if self.idle else None,
            "resume": resume,
        }
        with open(self.folder / "sampler.log", "ab") as log:
            self._sampler = subprocess.Popen(
                [sys.executable, "-P", "-m", "distill_energy.energy.sampler"],  # -P: no module of the stage's folder
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                pass_fds=[self._board.fd],
                start_new_session=True,  # Ctrl-C in a terminal is for the stage
            )
        ready = self._command(settings, self.config.start_timeout_s)
        if ready is None:
            raise UserError(f"the sampler did not start: see {self.folder / 'sampler.log'}")
        if "failed" in ready:
            raise UserError(ready["failed"])
        return ready

    # -- what a stage calls

    @property
    def estimated(self) -> bool:
        """Whether CodeCarbon's model stands in for a counter of the CPU."""
        return self._source == "estimated"

    def add_tokens(self, kind: str, n: int) -> None:
        """Count ``n`` tokens of ``kind`` (processed, loss, generated, padding). Kept even if the stage is killed."""
        if kind not in TOKEN_KINDS:
            raise ValueError(f"token kind {kind!r}: one of {', '.join(TOKEN_KINDS)}")
        if n < 0:
            raise ValueError(f"{n} tokens: a count is not negative")
        with self._token_lock:  # not the sampler's lock: counting never waits for a restart
            self._board.add_tokens(kind, int(n))

    def joules(self) -> float | None:
        """Gross J so far over the components of the total, as of the sampler's last tick; None if unknown. Cheap.

        After the end: the attempt's total.
        """
        return self._board.total() if self._board is not None else self._final

    def reading(self) -> tuple[float, float | None]:
        """(monotonic time of the sampler's last tick, J until then as ``joules``)."""
        return (time.monotonic(), self._final) if self._board is None else self._board.reading()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[PhaseHandle]:
        """Book a part of the stage apart. It stays in the stage's total."""
        handle = PhaseHandle(name)
        with self._lock:
            self._phases += 1
            number = self._phases
        begun = self._mark({"c": "phase+", "id": number, "name": name})
        try:
            yield handle
        finally:
            ended = self._mark({"c": "phase-", "id": number, "name": name})
            handle.wall_s = ended["t"] - begun["t"]
            if begun["total"] is not None and ended["total"] is not None:
                handle.joules = ended["total"] - begun["total"]
                handle.source = self._source
            else:
                handle.source, handle.reason = "unavailable", "the total was unknown when the phase began or ended"

    def write_power(self, path: str | Path) -> None:
        """Write the power trace of every attempt of this stage (see :func:`distill_energy.energy.write_power`)."""
        from .power import write_power

        write_power(self.attempts_dir, path)

    # -- the sampler

    def _mark(self, command: dict[str, Any]) -> dict[str, Any]:
        reply = self._command(command)
        if reply is not None:
            return reply
        t = time.monotonic()
        self._write([{"r": command["c"], "t": t, "id": command["id"], "name": command["name"]}])
        return {"t": t, "total": None}

    def _command(self, command: dict[str, Any], timeout_s: float = REPLY_S) -> dict[str, Any] | None:
        """Send a command and wait for its reply; None if the sampler is gone."""
        with self._lock:
            sampler = self._sampler
            if sampler is None:
                return None
            self._sent += 1
            try:
                os.write(sampler.stdin.fileno(), json.dumps({**command, "n": self._sent}).encode() + b"\n")
                while (reply := self._reply(timeout_s)) is not None and reply["n"] < self._sent:
                    pass  # the answer to a command that a signal cut short
                return reply
            except OSError:
                return self._lost()

    def _reply(self, timeout_s: float) -> dict[str, Any] | None:
        fd = self._sampler.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                return self._lost()
            chunk = os.read(fd, 1 << 20)
            if not chunk:
                return self._lost()
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def _lost(self) -> None:
        """The sampler ended or hangs: end it for good, so that the journal has one writer again."""
        sampler, self._sampler = self._sampler, None
        sampler.kill()
        sampler.wait()
        for stream in (sampler.stdin, sampler.stdout):
            with contextlib.suppress(OSError):
                stream.close()
        self._buffer = b""
        self._board.set_total(None, time.monotonic())
        return None

    def _watch(self, sampler: subprocess.Popen) -> None:
        """A thread that waits for the sampler to die and starts another: the counters then close the gap."""
        while True:
            sampler.wait()
            with self._lock:
                if self._closing or self._restarts >= MAX_RESTARTS:
                    return
                if self._sampler is sampler:
                    self._lost()
                self._restarts += 1
                self._write([{"r": "flag", "t": time.monotonic(), "flag": "sampler_died", "note": DIED}])
                try:
                    self._start_sampler(resume=True)
                except UserError as error:
                    print(f"the meter's sampler died and cannot be started again: {error}", file=sys.stderr, flush=True)
                    return
                if self._command({"c": "go"}) is None:
                    return
                sampler = self._sampler

    def _stop(self, outcome: str, reason: str | None) -> None:
        with self._lock:  # a restart that is under way ends first
            self._closing = True
        reply = self._command({"c": "stop", "outcome": outcome, "reason": reason})
        if reply is not None:
            sampler, self._sampler = self._sampler, None
            sampler.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                sampler.wait(10)
            sampler.stdout.close()
            unsaved = reply["unsaved"]
            if unsaved["lines"]:
                begun = unsaved["begun"].encode() if unsaved["begun"] else None
                self._append([line.encode() for line in unsaved["lines"]], heal=False, begun=begun)
            return
        t = time.monotonic()
        self._write(
            [
                {"r": "flag", "t": t, "flag": "sampler_died", "note": DIED},
                {"r": "tokens", "t": t, "n": self._board.tokens()},
                {"r": "end", "t": t, "u": time.time(), "outcome": outcome, "reason": reason},
            ]
        )

    def _write(self, records: list[dict[str, Any]]) -> None:
        """Write to the journal in the dead sampler's place."""
        self._append([journal.encode(record) for record in records], heal=True)

    def _append(self, lines: list[bytes], heal: bool, begun: bytes | None = None) -> None:
        """Append lines to the journal; what the disk refuses is kept in memory for this process's own reading.

        ``begun``: the whole of the first line where a part of it is on disk already.
        """
        path = self.folder / journal.NAME
        try:
            writer = journal.JournalWriter(path, heal=heal)
        except OSError:
            left = [begun or lines[0], *lines[1:]]
        else:
            writer.waiting += lines
            writer.begun = begun
            writer.flush()
            left, begun = writer.unwritten()
            left[:1] = [begun or left[0]] if left else []
            writer.close()
        kept = [json.loads(line) for line in left if line.startswith(b"{")]
        if kept:
            UNSAVED.setdefault(path.resolve(), []).extend(kept)

    # -- SIGTERM

    def _install_handler(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._old_handler = signal.signal(signal.SIGTERM, self._on_sigterm)
            self._handling = True

    def _restore_handler(self) -> None:
        if self._handling:
            self._handling = False
            # None: a handler that was not installed from Python, which Python cannot put back
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._old_handler is None else self._old_handler)

    def _on_sigterm(self, *_: object) -> None:
        if os.getpid() != self._pid:  # a forked worker that is told to end
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self._preempted = True
        raise SystemExit(143)
