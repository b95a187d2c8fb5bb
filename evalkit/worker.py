"""`python -m evalkit.worker`: a worker process. It takes commands on stdin and reports on stdout, JSON lines both.

    <- {"config": {...}, "asked": [...], "folders": [...]}     once
    <- {"start": [task number, phase]}    then    <- {"unit": 7} ...    <- {"end": true}
    <- {"stop": true}                      finish the batch in hand and end the phase
    -> {"ready": true}    {"advance": [samples, images, failed]}    {"done": 7}    {"outcome": {...}}
    -> {"error": text, "exit_code": 2, "user": true}

When stdin closes, the supervisor is gone and the process leaves at once: lines are written whole, so nothing is lost.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evalkit import launch, log
from evalkit.config import from_mapping
from evalkit.errors import EvalkitError
from evalkit.work import Assignment, Worker


class _Pipe:
    """The line to the supervisor. Prints of libraries go to stderr, so that they cannot be taken for messages."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.commands: queue.Queue[dict[str, Any]] = queue.Queue()
        self.stop = threading.Event()
        threading.Thread(target=self._listen, daemon=True, name="commands").start()

    def _listen(self) -> None:
        for line in sys.stdin:
            command = json.loads(line)
            if "stop" in command:
                self.stop.set()
                command = {"end": True}
            self.commands.put(command)
        os._exit(1)  # the supervisor is gone: nobody will hand out units or restart this worker

    def send(self, **message: Any) -> None:
        self._out.write(json.dumps(message) + "\n")

    def advance(self, *, samples: int, images: int, failed: int = 0) -> None:
        self.send(advance=[samples, images, failed])

    def units(self) -> Iterator[int]:
        """Yield the units handed out until the phase ends."""
        while "unit" in (command := self.commands.get()):
            yield command["unit"]


def main() -> None:
    """Serve one supervisor until it closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's: it asks for a stop
    pipe = _Pipe()
    try:
        _serve(pipe)
    except EvalkitError as error:
        pipe.send(error=str(error), exit_code=error.exit_code, user=True)
    except BaseException:
        pipe.send(error=traceback.format_exc(), exit_code=1, user=False)
        raise


def _serve(pipe: _Pipe) -> None:
    job = pipe.commands.get()
    config = from_mapping(job["config"], job["asked"])
    launch.limit_threads(config.engine.threads)
    model = launch.build_model(config.model)
    worker = Worker(model, pipe.stop)
    assignments: dict[int, Assignment] = {}
    prepared = -1
    while True:
        number, phase = pipe.commands.get()["start"]
        if number not in assignments:
            folder = Path(job["folders"][number])
            assignments = {number: launch.assignment(config.task[number], config, model, folder)}
        assignment = assignments[number]
        if prepared != number:
            worker.prepare(assignment)
            prepared = number
        pipe.send(ready=True)
        with log.Writer(assignment.predictions) as writer:
            outcome = worker.do(assignment, phase, pipe.units(), writer, pipe, lambda index: pipe.send(done=index))
        pipe.send(outcome=dataclasses.asdict(outcome))


if __name__ == "__main__":
    main()
