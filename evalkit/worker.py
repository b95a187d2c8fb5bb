"""`python -m evalkit.worker`: a worker process. It takes commands on stdin and reports on stdout, JSON lines both.

    <- {"config": {...}, "asked": [...], "folders": [...]}     once
    <- {"start": [turn, task number, phase]}    then    <- {"unit": 7} ...    <- {"end": true}
    <- {"unit": 7, "again": true}          somebody who is gone may have done a part of it
    <- {"stop": true}                      finish the batch in hand and end the phase
    -> {"beat": true}                      now and then: this process runs
    -> {"ready": turn}    {"advance": [samples, images, failed]}    {"done": 7}    {"turn": turn, "outcome": {...}}
    -> {"error": text, "kind": "ResultsError"}    kind is empty for a bug: the text is its traceback

When stdin closes, the supervisor is gone and the process leaves at once: lines are written whole, so nothing is lost.
`serve` is also what an actor of `ray_engine.py` runs; there the messages travel through Ray.
"""

from __future__ import annotations

import abc
import ctypes
import dataclasses
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evalkit import assemble, log
from evalkit.config import from_mapping
from evalkit.errors import EvalkitError
from evalkit.work import Assignment, Worker

BEAT_SECONDS = 2.0


class Line(abc.ABC):
    """The line to whoever hands out units: commands in, messages out."""

    def __init__(self) -> None:
        self.commands: queue.Queue[Mapping[str, Any]] = queue.Queue()
        self.stop = threading.Event()
        self.again: set[int] = set()
        """Units that somebody else has begun."""

    @abc.abstractmethod
    def send(self, **message: Any) -> None:
        """Report; callable from any thread."""

    def take(self, command: Mapping[str, Any]) -> None:
        """Queue a command that has arrived."""
        if "stop" in command:
            self.stop.set()
            command = {"end": True}
        self.commands.put(command)

    def advance(self, *, samples: int, images: int, failed: int = 0) -> None:
        """Report progress (this makes a line a `Reporter`)."""
        self.send(advance=[samples, images, failed])

    def units(self) -> Iterator[int]:
        """Yield the units handed out until the phase ends."""
        while "unit" in (command := self.commands.get()):
            if command.get("again"):
                self.again.add(command["unit"])
            yield command["unit"]


def serve(line: Line) -> None:
    """Do what the line says until something fails, and tell it.

    Raises:
        SystemExit: after a bug; its traceback was told.
    """
    try:
        _serve(line)
    except EvalkitError as error:
        line.send(error=str(error), kind=type(error).__name__)
    except Exception as error:
        line.send(error=traceback.format_exc(), kind="")
        raise SystemExit(1) from error


def _serve(line: Line) -> None:
    job = line.commands.get()
    config = from_mapping(job["config"], job["asked"])
    assemble.limit_threads(config.engine.threads)
    model = assemble.build_model(config.model)
    worker = Worker(model, line.stop)
    assignments: dict[int, Assignment] = {}
    prepared = -1
    while True:
        turn, number, phase = line.commands.get()["start"]
        if number not in assignments:
            folder = Path(job["folders"][number])
            assignments = {number: assemble.assignment(config.task[number], config, model, folder)}
        assignment = assignments[number]
        if prepared != number:
            worker.prepare(assignment)
            prepared = number
        line.send(ready=turn)
        with log.Writer(assignment.predictions) as writer:
            outcome = worker.do(
                assignment, phase, line.units(), writer, line, lambda index: line.send(done=index), line.again
            )
        line.send(turn=turn, outcome=dataclasses.asdict(outcome))


class _Pipe(Line):
    """stdin and stdout. Prints of libraries go to stderr, so that they cannot be taken for messages."""

    def __init__(self) -> None:
        super().__init__()
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True, name="commands").start()
        threading.Thread(target=self._beat, daemon=True, name="beat").start()

    def send(self, **message: Any) -> None:
        data = (json.dumps(message) + "\n").encode()
        with self._lock:
            try:
                while data:
                    data = data[os.write(self._out, data) :]
            except BrokenPipeError:
                os._exit(1)  # the supervisor is gone

    def _listen(self) -> None:
        try:
            for line in sys.stdin.buffer:
                if not line.endswith(b"\n"):
                    break  # torn: the supervisor was killed while it wrote
                self.take(json.loads(line))
        finally:
            os._exit(1)  # the supervisor is gone: nobody will hand out units or restart this worker

    def _beat(self) -> None:
        while True:
            self.send(beat=True)
            time.sleep(BEAT_SECONDS)


def main() -> None:
    """Serve one supervisor until it closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's: it asks for a stop
    _die_with_parent()
    serve(_Pipe())


def _die_with_parent() -> None:
    """Have Linux kill this process when its parent dies.

    The closed pipe does so too, and everywhere, but not while C code holds the interpreter lock or it is stopped.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    main()
