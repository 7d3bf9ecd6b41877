"""A warm process: loads the libraries once, under a meter of its own, and runs each job in a forked child.

``python -m distill_energy.warm ADDRESS START``, started by :mod:`distill_energy.energy.worker`. What loading costs is
an execution of its own (stage ``prerun``, name ``worker``), shared by the runs like the rest of ``prerun``. It ends
with the workflow's process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import traceback
from typing import Any

from .energy.worker import answer_folder, is_own, owner
from .plan.spec import StageSpec, digest
from .stage import StageContext, execute

#: What most stages load. No thread may be running when a child is forked, so nothing is computed here.
LIBRARIES = (
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "pandas",
    "pyarrow.parquet",
    "datasets",
    "distill_energy.train.run",
    "distill_energy.evaluate.session",
)


def load(ctx: StageContext) -> dict[str, Any]:
    """The work of ``prerun/worker``: import the libraries; those that are not installed are left out."""
    loaded = []
    with ctx.meter.phase("start"):
        for name in LIBRARIES:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
                loaded.append(name)
        if ctx.meter.estimated:
            from .energy.sensors.codecarbon_worker import look_at_hardware

            look_at_hardware()
    return {"loaded": loaded}


def spec_of(start: dict[str, Any]) -> StageSpec:
    """A stage of its own for each start of a warm process."""
    identity = [os.uname().nodename, os.getpid(), start["began"]]
    return StageSpec("prerun", "worker", digest(identity), 1, {}, root=answer_folder(), energy=start["energy"])


def serve(listener: socket.socket, workflow: int) -> dict[str, Any] | None:
    """Fork a child for each request until the workflow's process is gone. Returns a request in its child."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for: the client sees their end
    try:
        gone = os.pidfd_open(workflow)
    except ProcessLookupError:
        return None
    while True:
        ready, _, _ = select.select([listener, gone], [], [])
        if gone in ready:
            return None
        connection, _ = listener.accept()
        if is_own(connection) and os.fork() == 0:
            listener.close()
            os.close(gone)
            return _received(connection)
        connection.close()


def _received(connection: socket.socket) -> dict[str, Any]:
    """In the child: take over the client's streams, environment and folder, and obey its signals."""
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    head, streams, _, _ = socket.recv_fds(connection, struct.calcsize("!Q"), 3)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    left, body = struct.unpack("!Q", head)[0], b""
    while len(body) < left:
        if not (part := connection.recv(left - len(body))):
            sys.exit(1)  # the client is gone before it said what to do
        body += part
    request = json.loads(body.decode("utf-8", "surrogateescape"))
    os.environ.clear()
    os.environ.update(request["environment"])
    os.umask(request["umask"])
    os.chdir(request["folder"])
    threading.Thread(target=_obey, args=(connection,), daemon=True).start()
    return request | {"connection": connection}


def _obey(connection: socket.socket) -> None:
    """A thread: signals that the client was sent are this process's; a client that is gone ends it."""
    with contextlib.suppress(OSError):
        while number := connection.recv(1):
            os.kill(os.getpid(), number[0])
    os.kill(os.getpid(), signal.SIGTERM)


def main(name: str, start: dict[str, Any]) -> int:
    """Load, serve, and in each child do its job; the exit status."""
    workflow = owner()
    listener = socket.socket(socket.AF_UNIX)
    if workflow is None:
        return 0
    execute(spec_of(start), load)
    listener.bind(b"\0" + name.encode())
    listener.listen(64)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the first client's stderr would never end
    request = serve(listener, workflow)
    if request is None:
        return 0
    status = 1
    try:
        module, function = request["function"].split(":")
        status = getattr(importlib.import_module(module), function)(**request["arguments"]) or 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):
        request["connection"].send(bytes([status & 255]))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], json.loads(sys.argv[2])))
