"""`engine=ray`: workers on a Ray cluster, one GPU each; the driver hands out units as they finish.

    pip install 'evalkit[ray]'
    RAY_ADDRESS=head:6379 python -m evalkit engine=ray model=blip2-opt task=vqav2 out=/shared/runs

Actors run what worker processes run (`worker.serve`), and `Shift` decides who does what; only the way of the messages
is Ray's. The run folder and the data lie on a file system that all nodes see under the same path. A slow node gets
fewer units; those of a lost one go to the others.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evalkit.config import EngineConfig
from evalkit.errors import ConfigError, ResultsError, UnsupportedError
from evalkit.progress import Reporter
from evalkit.run import Outcome
from evalkit.shift import Hand, Shift, WorkerError
from evalkit.worker import Line, serve

_LISTEN_SECONDS = 0.2
"""So long an actor waits for something to say; commands travel with the next question."""
_LOOK_SECONDS = 0.5


class Actor:
    """A worker as a Ray actor. The driver asks again and again; an answer is a sign of life."""

    def __init__(self, job: Mapping[str, Any], cwd: str) -> None:
        """Start the worker beside the thread that answers the driver."""
        self._line = _Mailbox()
        self._line.take(job)
        threading.Thread(target=self._work, args=(cwd,), daemon=True, name="worker").start()

    def exchange(self, commands: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Take these commands in order; return what the worker has said since, after a moment if it is nothing."""
        for command in commands:
            self._line.take(command)
        said = self._line.said
        messages = []
        try:
            messages.append(said.get(timeout=_LISTEN_SECONDS))
            while True:
                messages.append(said.get_nowait())
        except queue.Empty:
            return messages

    def _work(self, cwd: str) -> None:
        try:
            os.chdir(cwd)
        except OSError as error:
            reason = (
                f"node {socket.gethostname()} cannot see {cwd}: {error.strerror}; with engine=ray, start in a folder "
                "that all nodes share under the same path"
            )
            self._line.send(error=reason, kind=ResultsError.__name__)
        else:
            serve(self._line)


class _Mailbox(Line):
    """What the worker says waits here for the driver's next question."""

    def __init__(self) -> None:
        super().__init__()
        self.said: queue.Queue[dict[str, Any]] = queue.Queue()

    def send(self, **message: Any) -> None:
        self.said.put(message)


@dataclass(eq=False)
class _Member:
    """An actor as the driver sees it."""

    actor: Any
    hand: Hand
    commands: list[Mapping[str, Any]]
    """To be sent with the next question."""
    answer: Any = field(default=None)
    """The question that is out: a future of Ray's."""


class Cluster:
    """Actors on a Ray cluster. Use as a context manager: leaving it ends them."""

    def __init__(self, job: Mapping[str, Any], devices: str, engine: EngineConfig) -> None:
        """Connect (RAY_ADDRESS, else a cluster of this machine, else a new one here) and start the actors.

        Args:
            job: the first message to each: configuration and run folders.
            devices: how many actors; "auto": one for each GPU of the cluster, or each CPU where there is none.
            engine: heartbeat and restarts.

        Raises:
            UnsupportedError: Ray is not installed.
            ConfigError: `devices` is neither a number nor auto; the cluster cannot be reached.
        """
        try:
            import ray
        except ModuleNotFoundError as error:
            raise UnsupportedError("engine=ray needs Ray: pip install 'evalkit[ray]'") from error
        if devices != "auto" and (not devices.isdigit() or int(devices) < 1):
            raise ConfigError(f"devices={devices!r}: give a number from 1, or auto for all of the cluster")
        self._ray = ray
        self._job, self._engine = dict(job), engine
        self.restarts = 0
        self._connected = not ray.is_initialized()
        if self._connected:
            try:
                ray.init(configure_logging=False, include_dashboard=False, log_to_driver=True)
            except ConnectionError as error:
                where = os.environ.get("RAY_ADDRESS", "")
                raise ConfigError(f"engine=ray cannot reach the cluster at RAY_ADDRESS={where}: {error}") from error
        resources = ray.cluster_resources()
        self._need = {"num_gpus": 1} if resources.get("GPU", 0) >= 1 else {"num_cpus": 1}
        available = int(resources.get("GPU" if "num_gpus" in self._need else "CPU", 1))
        self._members: list[_Member] = []
        for _ in range(max(available, 1) if devices == "auto" else int(devices)):
            self._add()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            self._ray.kill(member.actor)
        if self._connected:
            self._ray.shutdown()

    def run(self, number: int, phase: str, units: Sequence[int], progress: Reporter, stop: threading.Event) -> Outcome:
        """Have the actors do these units of a phase of task `number`.

        Raises:
            EvalkitError: what an actor found to be the user's to mend.
            WorkerError: an actor failed while it made ready, or none is left and `engine.max_restarts` is used up.
        """
        shift = Shift(number, phase, units, progress)
        for member in self._members:
            shift.join(member.hand)
        while not shift.over:
            if stop.is_set():
                shift.stop()
            for member in self._answered():
                self._hear(member, shift)
            for hand, seconds in shift.silent(self._engine.heartbeat_s):
                member = next(each for each in self._members if each.hand is hand)
                self._replace(member, shift, f"did nothing for {seconds:.0f} s (engine.heartbeat_s)")
        shift.close()
        shift.outcome.interrupted = stop.is_set()
        return shift.outcome

    def _answered(self) -> list[_Member]:
        """Return the actors that have answered, after a moment if none has; each question goes out once."""
        for member in self._members:
            if member.answer is None:
                member.answer = member.actor.exchange.remote(member.commands)
                member.commands.clear()
        waiting = {member.answer: member for member in self._members}
        first, rest = self._ray.wait(list(waiting), num_returns=1, timeout=_LOOK_SECONDS)
        more = self._ray.wait(rest, num_returns=len(rest), timeout=0)[0] if first and rest else []
        return [waiting[answer] for answer in (*first, *more)]

    def _hear(self, member: _Member, shift: Shift) -> None:
        answer, member.answer = member.answer, None
        try:
            messages = self._ray.get(answer)
        except self._ray.exceptions.RayActorError as error:
            self._replace(member, shift, f"is lost: {' '.join(str(error).split())[:300]}")
            return
        shift.hear(member.hand, {"beat": True})
        for message in messages:
            shift.hear(member.hand, message)
        if member.hand.error:
            self._replace(member, shift, "failed")

    def _replace(self, member: _Member, shift: Shift, why: str) -> None:
        """Give the units of an actor to others; ask for another one, which starts where and when there is room.

        Other than on one machine, restarts that are used up do not end the run while somebody works: a node takes
        several actors with it.
        """
        self._ray.kill(member.actor)
        units = len(member.hand.units)
        shift.lost(member.hand)
        self._members.remove(member)
        if shift.stopped:
            return
        again = self.restarts < self._engine.max_restarts
        if not again and not self._members and not shift.over:
            raise WorkerError(
                f"{member.hand.name} {why}; no worker is left after {self.restarts} restarts "
                f"(engine.max_restarts={self._engine.max_restarts}); everything finished is kept, the same command "
                f"continues\n{member.hand.error}"
            )
        said = f"{member.hand.name} {why}; {units} units are handed out again"
        if again:
            self.restarts += 1
            said += f", restart {self.restarts} of at most {self._engine.max_restarts}"
            shift.join(self._add().hand)
        print(f"{said}\n{member.hand.error}".rstrip(), file=sys.stderr)

    def _add(self) -> _Member:
        # Ray's own retries stay off: a call that is made twice would hand out a unit twice.
        remote = self._ray.remote(max_restarts=0, max_task_retries=0, **self._need)(Actor)
        actor = remote.remote(self._job, os.getcwd())
        commands: list[Mapping[str, Any]] = []
        name = f"actor {actor._actor_id.hex()[:8]}"
        member = _Member(actor, Hand(name=name, send=commands.append), commands)
        self._members.append(member)
        return member
