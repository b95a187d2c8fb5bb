"""Several devices of one machine: one process a device, units handed out as they finish, a dead worker replaced alone.

No collectives: workers share the run folder and nothing else. A worker that dies, or does nothing for
`engine.heartbeat_s`, is killed and replaced, `engine.max_restarts` times in all; its units go to whoever is free.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from evalkit.config import EngineConfig
from evalkit.progress import Reporter
from evalkit.run import Outcome
from evalkit.shift import Hand, Shift, WorkerError

_LOOK_SECONDS = 0.5


@dataclass(eq=False)
class _Process:
    """A worker process: its pipes and what it is as a hand."""

    device: int
    process: subprocess.Popen[bytes]
    hand: Hand
    buffer: bytes = b""

    @property
    def stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

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
        self.restarts = 0
        self._selector = selectors.DefaultSelector()
        self._workers = [self._spawn(device) for device in range(len(devices))]

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            self._bury(worker)
        self._selector.close()

    def run(self, number: int, phase: str, units: Sequence[int], progress: Reporter, stop: threading.Event) -> Outcome:
        """Have the workers do these units of a phase of task `number`.

        Raises:
            EvalkitError: what a worker found to be the user's to mend.
            WorkerError: workers failed more often than `engine.max_restarts`, with the traceback of the last.
        """
        shift = Shift(number, phase, units, progress)
        for worker in self._workers:
            shift.join(worker.hand)
        while not shift.over:
            if stop.is_set():
                shift.stop()
            for key, _ in self._selector.select(timeout=_LOOK_SECONDS):
                worker = key.data
                data = os.read(worker.stdout.fileno(), 1 << 16)
                if not data:
                    self._replace(worker, shift, "")
                    continue
                *lines, worker.buffer = (worker.buffer + data).split(b"\n")
                for line in lines:
                    shift.hear(worker.hand, json.loads(line))
            for hand, seconds in shift.silent(self._engine.heartbeat_s):
                worker = next(each for each in self._workers if each.hand is hand)
                self._replace(worker, shift, f"did nothing for {seconds:.0f} s (engine.heartbeat_s)")
        shift.close()
        shift.outcome.interrupted = stop.is_set()
        return shift.outcome

    def _replace(self, worker: _Process, shift: Shift, why: str) -> None:
        """Kill what is left of a worker, give its units to others and start another on the same device."""
        worker.process.kill()
        code = self._bury(worker)
        units = len(worker.hand.units)
        said = f"{worker.hand.name} {why or _ended(code)}"
        shift.lost(worker.hand)
        place = self._workers.index(worker)
        if shift.stopped:
            del self._workers[place]
            return
        if self.restarts >= self._engine.max_restarts and not shift.over:
            raise WorkerError(
                f"{said} after {self.restarts} restarts (engine.max_restarts={self._engine.max_restarts}); everything "
                f"finished is kept, the same command continues\n{worker.hand.error}"
            )
        self.restarts += 1
        print(
            f"{said}; restart {self.restarts} of at most {self._engine.max_restarts}, {units} units are handed out "
            f"again\n{worker.hand.error}".rstrip(),
            file=sys.stderr,
        )
        self._workers[place] = self._spawn(worker.device)
        shift.join(self._workers[place].hand)

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

        def send(command: Mapping[str, Any]) -> None:
            with contextlib.suppress(BrokenPipeError):  # it is dead: the next look at its stdout finds out
                worker.stdin.write((json.dumps(command) + "\n").encode())
                worker.stdin.flush()

        worker = _Process(device, process, Hand(name=f"worker {device} (process {process.pid})", send=send))
        self._selector.register(worker.stdout, selectors.EVENT_READ, worker)
        send(self._job)
        return worker

    def _bury(self, worker: _Process) -> int:
        """Wait for a killed worker, close its pipes, and return its exit code."""
        code = worker.process.wait()
        if not worker.stdout.closed:
            self._selector.unregister(worker.stdout)
            worker.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # what was still to be written has no reader any more
            worker.stdin.close()
        return code


def _ended(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (by hand, or because memory ran out)" if name == "SIGKILL" else "")
