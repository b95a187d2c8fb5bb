"""Several devices of one machine: one process a device, units handed out as they finish, a dead worker replaced alone.

No collectives: workers share the run folder and nothing else. A worker that dies or shows no sign of life for
`engine.heartbeat_s` is killed and replaced up to `engine.max_restarts` times; its units in hand are handed out again.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from evalkit.config import EngineConfig
from evalkit.errors import EvalkitError, IncompleteError
from evalkit.loading import UNITS_AHEAD
from evalkit.progress import Reporter
from evalkit.run import Outcome

_IN_HAND = 1 + UNITS_AHEAD
"""Units a worker has at a time: the one it works on and those its loader threads open."""


class WorkerError(Exception):
    """A worker failed for good; its own traceback is the message."""


@dataclass
class _Process:
    """A worker process as its supervisor sees it."""

    device: int
    process: subprocess.Popen[bytes]
    units: deque[int] = field(default_factory=deque)
    """Handed out and not reported done."""
    ready: bool = False
    ended: bool = False
    """Told that no unit is left in this phase."""
    outcome: bool = False
    buffer: bytes = b""
    heard: float = field(default_factory=time.monotonic)

    def send(self, **message: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead: the next look at its stdout finds out and replaces it
            self.process.stdin.write((json.dumps(message) + "\n").encode())
            self.process.stdin.flush()

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout


class Supervisor:
    """Workers for the devices of this machine. Use as a context manager: leaving it ends them."""

    def __init__(self, job: Mapping[str, Any], devices: Sequence[str], engine: EngineConfig) -> None:
        """Start one worker a device.

        Args:
            job: the first message to each: configuration and run folders.
            devices: what CUDA_VISIBLE_DEVICES shall be for each worker; "" for a CPU worker.
            engine: heartbeat and restarts.
        """
        self._job = dict(job)
        self._devices = list(devices)
        self._engine = engine
        self._restarts = 0
        self._selector = selectors.DefaultSelector()
        self._workers = [self._spawn(device) for device in range(len(devices))]

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.kill()
            worker.process.wait()
            self._close(worker)
        self._selector.close()

    def run(self, number: int, phase: str, units: Sequence[int], progress: Reporter, stop: threading.Event) -> Outcome:
        """Have the workers do these units of a phase of task `number`.

        Raises:
            EvalkitError: what a worker found to be the user's to mend.
            WorkerError: a worker failed more often than `engine.max_restarts`, with its traceback.
        """
        total = Outcome()
        left = deque(units)
        told = False
        for worker in self._workers:
            self._start(worker, number, phase)
        while not all(worker.outcome for worker in self._workers):
            if stop.is_set() and not told:
                told = True
                for worker in self._workers:
                    worker.send(stop=True)
                    worker.ended = True
            for key, _ in self._selector.select(timeout=0.5):
                worker = key.data
                data = os.read(worker.stdout.fileno(), 1 << 16)
                if not data:
                    self._replace(worker, left, number, phase, "died", stop)
                    continue
                worker.heard = time.monotonic()
                *lines, worker.buffer = (worker.buffer + data).split(b"\n")
                for line in lines:
                    self._hear(worker, json.loads(line), left, progress, total)
            for worker in list(self._workers):
                silent = time.monotonic() - worker.heard
                if not worker.outcome and silent > self._engine.heartbeat_s:
                    self._replace(worker, left, number, phase, f"was silent for {silent:.0f} s", stop)
        total.interrupted = stop.is_set()
        return total

    def _start(self, worker: _Process, number: int, phase: str) -> None:
        worker.ready = worker.ended = worker.outcome = False
        worker.heard = time.monotonic()
        worker.send(start=[number, phase])

    def _hear(
        self, worker: _Process, message: Mapping[str, Any], left: deque[int], progress: Reporter, total: Outcome
    ) -> None:
        if "advance" in message:
            samples, images, failed = message["advance"]
            progress.advance(samples=samples, images=images, failed=failed)
        elif "done" in message:
            worker.units.remove(message["done"])
        elif "ready" in message:
            worker.ready = True
        elif "outcome" in message:
            worker.outcome = True
            total.asked += message["outcome"]["asked"]
            total.failed += message["outcome"]["failed"]
            total.memory_errors += message["outcome"]["memory_errors"]
        elif "error" in message:
            if message["user"]:
                kind = IncompleteError if message["exit_code"] == IncompleteError.exit_code else EvalkitError
                raise kind(message["error"])
            self._last_error = str(message["error"])
        self._hand_out(worker, left)

    def _hand_out(self, worker: _Process, left: deque[int]) -> None:
        while worker.ready and not worker.ended and len(worker.units) < _IN_HAND and left:
            worker.units.append(left.popleft())
            worker.send(unit=worker.units[-1])
        if worker.ready and not left and not worker.ended:
            worker.ended = True
            worker.send(end=True)

    def _replace(
        self, worker: _Process, left: deque[int], number: int, phase: str, why: str, stop: threading.Event
    ) -> None:
        """Kill what is left of a worker, take its units back and start another on the same device."""
        worker.process.kill()
        code = worker.process.wait()
        self._close(worker)
        left.extendleft(reversed(worker.units))
        if stop.is_set():
            worker.outcome = True
            return
        if self._restarts >= self._engine.max_restarts:
            raise WorkerError(
                f"worker {worker.device} {why} (exit {code}) after {self._restarts} restarts "
                f"(engine.max_restarts={self._engine.max_restarts}); everything finished is kept\n{self._last_error}"
            )
        self._restarts += 1
        print(f"worker {worker.device} {why} (exit {code}); replaced, restart {self._restarts}", file=sys.stderr)
        replacement = self._spawn(worker.device)
        self._workers[self._workers.index(worker)] = replacement
        self._start(replacement, number, phase)

    _last_error = ""

    def _spawn(self, device: int) -> _Process:
        environment = dict(os.environ)
        if self._devices[device]:
            environment["CUDA_VISIBLE_DEVICES"] = self._devices[device]
        process = subprocess.Popen(
            [sys.executable, "-m", "evalkit.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which asks for an orderly stop
        )
        worker = _Process(device, process)
        self._selector.register(worker.stdout, selectors.EVENT_READ, worker)
        worker.send(**self._job)
        return worker

    def _close(self, worker: _Process) -> None:
        if worker.stdout in self._selector.get_map():
            self._selector.unregister(worker.stdout)
        worker.stdout.close()
        assert worker.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what was still to be written has no reader any more
            worker.process.stdin.close()
