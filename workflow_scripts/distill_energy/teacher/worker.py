"""One of the processes that make a cache: ``python -m distill_energy.teacher.worker`` (see ``workers.py``)."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from ..config.params import LogitsParams
from ..errors import UserError
from .logits import Work

#: Seconds to end by itself after the stage's process is done or gone.
PATIENCE_S = 5.0


class Tokens:
    """The meter of a child: it counts, and the stage's own process measures."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add_tokens(self, kind: str, n: int) -> None:
        self.counts[kind] += n


def member(connection: Connection) -> None:
    """Make shards as told, until the connection closes."""
    task = connection.recv()
    threading.Thread(target=_end_with, args=(connection.fileno(),), daemon=True).start()
    torch.set_num_threads(task["threads"])
    work = Work(
        LogitsParams.model_validate(task["params"]), {k: Path(v) for k, v in task["inputs"].items()}, Path(task["out"])
    )
    teacher = work.load()
    connection.send({"facts": work.facts(teacher) if task["leads"] else None})
    writer = work.writer(connection.recv()["facts"], leads=False)
    while True:
        index = connection.recv()["shard"]
        meter = Tokens()
        work.make(teacher, writer, index, meter)
        connection.send({"tokens": dict(meter.counts)})


def _end_with(descriptor: int) -> None:
    """End this process, in the middle of a shard too, some seconds after the stage's own is gone."""
    gone = select.poll()
    gone.register(descriptor, 0)  # reports a hang-up alone
    gone.poll()
    time.sleep(PATIENCE_S)
    os._exit(1)


def main(connection: Connection) -> int:
    """Returns the exit status; why it failed is told on the connection."""
    try:
        member(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0  # the stage is done, or gone
    except UserError as error:
        connection.send({"error": str(error)})
    except Exception:
        connection.send({"failed": traceback.format_exc()})
    return 1


if __name__ == "__main__":
    sys.exit(main(Connection(int(sys.argv[1]))))
