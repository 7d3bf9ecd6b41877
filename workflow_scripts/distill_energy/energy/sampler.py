"""The sampler: a process of its own that reads every device on a fixed beat and journals it.

Started by the Meter as ``python -m distill_energy.energy.sampler`` with the settings as its first line of input. In a
process of its own no interpreter lock of the stage can delay it. It outlives a stage that is killed: the end of its
input, or of the stage's process, makes it take a last sample, close the attempt and end.

Commands (a JSON line each, one reply each): ``go``, ``phase+``, ``phase-``, ``flag``, ``stop``.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import time
from pathlib import Path
from typing import Any

from .board import Board
from .identity import utc
from .journal import JournalWriter, read
from .running import RunningTotal
from .sensors.devices import Host
from .sensors.shared_cpu import SharedCpu

PROCESS_CHECK_S = 10.0
SYNC_S = 30.0
INSTANT_JITTER = 0.9
GAP = 3  # intervals, as in account (which the sampler need not load)


class Sampler:
    """State of the running sampler."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.interval = settings["interval_s"]
        self.jitter = settings["jitter"]
        self.pid = settings["attempt"]["pid"]
        self.journal = JournalWriter(Path(settings["journal"]))
        self.board = Board(settings["board_fd"])
        self.host = Host(settings, os.environ, self.pid)
        self.described = self.host.describe()
        if any(device.get("power_kind") == "instant" for device in self.described):
            # a load in step with the beat is seen wrongly by the power at the beat; at random it is seen with scatter
            self.jitter = max(self.jitter, INSTANT_JITTER)
        self.order: list[int | None] | None = None  # after a restart: our index of each device of the journal
        self.total = RunningTotal(self.described, self.host.absent, GAP * self.interval)
        self.tokens: dict[str, Any] = {}
        self.started: float | None = None
        self.beat = 0
        self.terminated = False
        self.known_flags: set[str] = set()
        self.checked = -1e9
        self.synced = time.monotonic()
        self.first_pids: dict[str, set[int]] = {}
        self.shared: SharedCpu | None = None
        node_is_all = any(device["kind"] == "node" and device["in_total"] for device in self.described)
        if node_is_all or any(device["kind"] == "rapl" for device in self.described):
            try:
                self.shared = SharedCpu(self.pid)
            except OSError as error:
                self.host.notes.append(f"stages beside this one on the host cannot be seen ({error.strerror})")

    def open_record(self) -> dict[str, Any]:
        return {
            "r": "resume" if self.settings.get("resume") else "open",
            "t": time.monotonic(),
            "u": time.time(),
            "attempt": self.settings["attempt"],
            "identity": self.settings.get("identity"),
            "interval_s": self.interval,
            "jitter": self.jitter,
            "devices": self.described,
            "absent": self.host.absent,
            "flags": self.host.flags,
            "notes": self.host.notes,
            "idle": self.settings.get("idle"),
        }

    def replay(self) -> None:
        """Take up a journal that another sampler began: its devices keep their places, its total goes on."""
        records, _ = read(self.journal.path)
        opened = next((record for record in records if record["r"] == "open"), None)
        if opened is None:
            return
        mine = {(device["kind"], device["component"], device["device"]): i for i, device in enumerate(self.described)}
        keys = [(device["kind"], device["component"], device["device"]) for device in opened["devices"]]
        self.order = [mine.get(key) for key in keys]
        if None in self.order or len(keys) != len(mine):
            self.flag("devices_changed", "the restarted sampler found other devices")
        self.described = opened["devices"]
        self.total = RunningTotal(self.described, opened["absent"], GAP * self.interval)
        for record in records:
            if record["r"] == "tick":
                self.total.add(record["t"], record["v"], record.get("share", 1.0))

    def read_devices(self, now: bool, final: bool) -> tuple[float, list[list[Any]]]:
        t, values = self.host.sample(now, final)
        if self.order is None:
            return t, values
        return t, [[None, None, "not there after the restart"] if i is None else values[i] for i in self.order]

    def tick(self, now: bool = False, final: bool = False) -> float:
        """Read every device, journal it, publish the running total; the tick's monotonic time."""
        t, values = self.read_devices(now, final)
        record = {"r": "tick", "t": t, "u": round(time.time() - (time.monotonic() - t), 6), "v": values}
        if self.shared is not None and (share := self.shared.share()) is not None:
            record["share"] = share  # of the CPU packages' energy since the last tick
            self.flag("shared_device", "CPU: other measured stages ran on this host; divided by busy CPU time")
        if self.host.gpus:
            record["h"] = {
                gpu.entry.uuid: health for gpu, health in zip(self.host.gpus, self.host.health(), strict=True)
            }
        self.journal.write(record)
        if self.host.node is not None:
            for flag, note in self.host.node.flags:
                self.flag(flag, note)
            self.host.node.flags.clear()
        self.board.set_total(self.total.add(t, values, record.get("share", 1.0)), t)
        tokens = self.board.tokens()
        if tokens != self.tokens:
            self.tokens = tokens
            self.journal.write({"r": "tokens", "t": t, "n": tokens})
        if t - self.synced > SYNC_S:
            self.synced = t
            self.journal.sync()
        return t

    def flag(self, flag: str, note: str | None = None) -> None:
        if flag not in self.known_flags:
            self.known_flags.add(flag)
            self.journal.write({"r": "flag", "t": time.monotonic(), "flag": flag, "note": note})

    def deadline(self) -> float:
        """The next beat: multiples of the interval from the start, so that lateness never adds up."""
        passed = int((time.monotonic() - self.started) / self.interval)
        self.beat = max(self.beat + 1, passed + 1)
        shift = self.jitter * (random.random() - 0.5) if self.jitter else 0.0
        return self.started + (self.beat + shift) * self.interval

    def check_processes(self) -> None:
        """Flag a GPU that a process outside the stage uses."""
        from .processes import foreign

        self.checked = time.monotonic()
        for gpu in self.host.gpus:
            pids = gpu.pids()
            if pids is None:
                continue
            seen = self.first_pids.setdefault(gpu.entry.uuid, set(pids))
            strange = foreign(pids, self.pid, at_start=seen)
            if strange:
                self.flag("shared_device", f"{gpu.entry.uuid}: also used by {strange}")

    def handle(self, command: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """Carry out one command: (reply, whether it was the last)."""
        name = command["c"]
        if name == "flag":
            self.flag(command["flag"], command.get("note"))
            return {"ok": name}, False
        if name == "stop":
            t = self.tick(final=True)
            self.finish(t, command["outcome"], command.get("reason"))
            return {"ok": name, "t": t, "total": self.board.total(), "unsaved": self.unsaved()}, True
        t = self.tick(now=True)
        if name == "go":
            self.started = t
            self.journal.write({"r": "go", "t": t, "u": time.time()})
        elif name in ("phase+", "phase-"):
            self.journal.write({"r": name, "t": t, "id": command["id"], "name": command["name"]})
        return {"ok": name, "t": t, "total": self.board.total()}, False

    def unsaved(self) -> dict[str, Any]:
        lines, begun = self.journal.unwritten()
        return {"lines": [line.decode() for line in lines], "begun": begun.decode() if begun else None}

    def finish(self, t: float, outcome: str, reason: str | None) -> None:
        if self.journal.failure:
            self.journal.write(
                {"r": "flag", "t": t, "flag": "journal_delayed", "note": f"the disk refused: {self.journal.failure}"}
            )
        if self.journal.dropped:
            self.journal.write({"r": "flag", "t": t, "flag": "journal_lost", "note": f"{self.journal.dropped} records"})
        self.journal.write({"r": "end", "t": t, "u": time.time(), "outcome": outcome, "reason": reason})

    def close(self) -> None:
        if self.shared is not None:
            self.shared.close()
        self.journal.close()
        self.host.close()


def _stage_handle(pid: int) -> int | None:
    """A descriptor that turns readable when the stage's process ends (children of it may keep our input open)."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def run(sampler: Sampler, source: int, reply: Any) -> None:
    """The main loop: sleep until the next beat, a command, or the stage's end."""
    with contextlib.suppress(OSError):  # root only: a sampler that sleeps 99.9% of the time should wake on time
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    stage = _stage_handle(sampler.pid)
    poll = select.poll()
    poll.register(source, select.POLLIN | select.POLLHUP)
    if stage is not None:
        poll.register(stage, select.POLLIN)
    buffer, due = b"", None
    while True:
        wait = None if due is None else max(0.0, due - time.monotonic())
        events = poll.poll(None if wait is None else wait * 1000)
        ready = [fd for fd, _ in events]
        if source in ready:
            chunk = os.read(source, 65536)
            buffer += chunk
            while b"\n" in buffer:
                line, buffer = buffer.split(b"\n", 1)
                command = json.loads(line)
                answer, last = sampler.handle(command)
                reply({**answer, "n": command["n"]})
                if last:
                    return
                if due is None and sampler.started is not None:
                    due = sampler.deadline()
            if not chunk:
                if stage is None:
                    break
                # Our input ends before the stage does where the stage replaced itself (exec) or closed its
                # descriptors: it still works, so we still measure.
                poll.unregister(source)
        elif stage is not None and stage in ready:
            break
        if due is not None and time.monotonic() >= due:
            sampler.tick()
            due = sampler.deadline()
            if sampler.host.gpus and time.monotonic() - sampler.checked > PROCESS_CHECK_S:
                sampler.check_processes()
    if sampler.started is not None:
        outcome = "preempted" if sampler.terminated else "killed"
        t = sampler.tick(final=True)
        sampler.finish(t, outcome, f"the stage's process ended without closing the attempt ({utc(time.time())})")


def main() -> None:
    source, out = 0, os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    head = b""
    while not head.endswith(b"\n"):
        byte = os.read(source, 1)
        if not byte:
            return
        head += byte
    settings = json.loads(head)

    def reply(answer: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the stage is gone; the end of our input says so too
            print(json.dumps(answer), file=out)

    try:
        sampler = Sampler(settings)
    except Exception as error:
        reply({"n": settings["n"], "failed": str(error), "user": type(error).__name__ == "UserError"})
        return

    def on_sigterm(*_: object) -> None:
        # SLURM signals the whole step. The stage decides; if it dies before closing, this tells preempted from killed.
        sampler.terminated = True

    signal.signal(signal.SIGTERM, on_sigterm)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if settings.get("resume"):
        sampler.replay()
    sampler.journal.write(sampler.open_record())
    reply({"n": settings["n"], "ready": sampler.described, "absent": sampler.host.absent})
    try:
        run(sampler, source, reply)
    finally:
        sampler.close()


if __name__ == "__main__":
    main()
