"""The client of a warm process (see :mod:`distill_energy.warm`): hands a job over and waits for its end.

A stage that trains a small model for ten seconds spends three on loading torch and transformers, and CodeCarbon one and
a half on looking at the machine. One process that has done both, and forks a child for each job, spends them once. The
child has the job's environment, folder and streams; its signals are the client's, and it ends with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .identity import process_start

#: Environment: whose jobs may share a warm process, as "pid:start:SLURM job:answer's folder" of the workflow's process.
OWNER = "DISTILL_ENERGY_WARM_OWNER"
START_S = 300.0
#: Device files of an NVIDIA driver (the second: in WSL). CUDA, once asked for anything, does not survive a fork.
CUDA_DRIVER = ("/dev/nvidiactl", "/dev/dxg")
#: What is read once, when a library is loaded: jobs that differ in it do not share a process.
READ_AT_LOAD = ("CUDA_", "GOMP_", "HF_", "KMP_", "LD_", "MKL_", "NVIDIA_", "OMP_", "OPENBLAS_", "TORCH")


def owned_by(pid: int, answer: str) -> str:
    """The value of ``OWNER`` for a workflow's process and the folder of its study's answer."""
    return f"{pid}:{process_start(pid)}:{os.environ.get('SLURM_JOB_ID', '')}:{answer}"


def answer_folder() -> str:
    """Where a start is recorded: it is the study's own, though artifacts are shared by studies."""
    return os.environ[OWNER].split(":", 3)[3]


def owner() -> int | None:
    """The process whose jobs may share a warm process here; None if there is none, or it is elsewhere or gone.

    None, too, where there is an NVIDIA GPU: a fork of a process that has asked CUDA for anything cannot use it.
    """
    if any(map(os.path.exists, CUDA_DRIVER)):
        return None
    try:
        pid, start, job, _ = os.environ[OWNER].split(":", 3)
        here = process_start(int(pid)) == int(start) and job == os.environ.get("SLURM_JOB_ID", "")
        return int(pid) if here and hasattr(os, "pidfd_open") else None
    except (KeyError, ValueError):
        return None


def address() -> bytes:
    """Of the warm process that this process's jobs share, in Linux's abstract namespace: no file is left behind."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(READ_AT_LOAD)}
    package = str(Path(__file__).resolve().parents[1])
    same = [sys.executable, package, os.environ[OWNER], os.readlink("/proc/self/ns/mnt"), kept]
    digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
    return b"\0distill-energy-" + digest[:32].encode()


def is_own(connection: socket.socket) -> bool:
    """Whether the other end is a process of this user."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", peer)[1] == os.getuid()


class Job:
    """A function's call in a child of the warm process, which has the streams given; ``send`` it signals."""

    def __init__(self, connection: socket.socket, function: str, arguments: dict[str, Any], streams: list[int]) -> None:
        umask = os.umask(0)
        os.umask(umask)
        request = {"function": function, "arguments": arguments, "environment": dict(os.environ)}
        request |= {"folder": os.getcwd(), "umask": umask}
        body = json.dumps(request).encode("utf-8", "surrogateescape")
        self.connection = connection
        socket.send_fds(connection, [struct.pack("!Q", len(body))], streams)
        connection.sendall(body)

    def send(self, number: int) -> None:
        self.connection.send(bytes([number]))

    def wait(self) -> int:
        """Its exit status, once it is gone; 137 if it was killed."""
        status = 128 + signal.SIGKILL
        with self.connection:
            try:
                while said := self.connection.recv(1):  # until the end of file: the child holds the other end
                    status = said[0]
            except OSError:
                pass
        return status


def call(function: str, arguments: dict[str, Any], start: dict[str, Any]) -> int | None:
    """Have ``function`` ("module:name") called in a child of the warm process; its exit status. None: there is none.

    SIGTERM and SIGINT are handed on. ``start``: what the warm process is told if this call is the first to need it.
    """
    if owner() is None or (connection := connect() or _started(start)) is None:
        return None
    before = {}
    try:
        job = Job(connection, function, arguments, [0, 1, 2])
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, lambda number, frame: job.send(number))
        return job.wait()
    except OSError:
        return None  # it ended before it had the job
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def connect() -> socket.socket | None:
    """A connection to the warm process; None if there is none."""
    if owner() is None:
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address())
        if is_own(connection):
            return connection
    except OSError:
        pass
    connection.close()
    return None


def _started(start: dict[str, Any]) -> socket.socket | None:
    """Start the warm process and wait until it answers; None if it ends instead (what it says is on this stderr)."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "distill_energy.warm", address()[1:].decode(), json.dumps(start)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if (connection := connect()) is not None:
            return connection
        if process.poll() is not None:
            return connect()  # another client's was first
        time.sleep(0.02)
    process.kill()
    return None
