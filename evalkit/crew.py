"""Who does the work: this process, or worker processes on its devices; and which share of a run is this machine's."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from evalkit import config as configuration
from evalkit import log, plan
from evalkit.config import RunConfig
from evalkit.errors import ConfigError, UnsupportedError
from evalkit.progress import Reporter
from evalkit.run import Outcome
from evalkit.types import Model
from evalkit.work import Assignment, Worker

_POLL_SECONDS = 1.0
_QUIET_SECONDS = 60.0


class Crew(Protocol):
    """Does units of a phase, wherever."""

    @property
    def restarts(self) -> int:
        """How often a worker was replaced so far."""

    def run(self, number: int, phase: str, units: Sequence[int], progress: Reporter, stop: threading.Event) -> Outcome:
        """Do these units of a phase of task `number`; with `stop`, finish the batches in hand."""


@contextmanager
def crew_of(config: RunConfig, model: Model, ready: Sequence[Assignment], place: Place) -> Iterator[Crew]:
    """Provide the workers that `devices=` asks for."""
    job = {
        "config": configuration.to_mapping(config),
        "asked": ["prompt_style"] if config.style_asked else [],
        "folders": [str(assignment.folder.resolve()) for assignment in ready],
    }
    if config.engine.kind == "ray":
        from evalkit.ray_engine import Cluster

        with Cluster(job, config.devices, config.engine) as cluster:
            yield cluster
        return
    if config.engine.kind != "local":
        raise UnsupportedError(f"engine={config.engine.kind} is not known; known: local, ray")
    devices = _devices(config.devices, place)
    if len(devices) == 1:
        yield _InProcess(model, ready)
        return
    from evalkit.supervisor import Supervisor

    with Supervisor(job, devices, config.engine) as supervisor:
        yield supervisor


class _InProcess:
    """One device: the work is done here."""

    restarts = 0

    def __init__(self, model: Model, ready: Sequence[Assignment]) -> None:
        self._worker = Worker(model)
        self._ready = ready
        self._prepared = -1

    def run(self, number: int, phase: str, units: Sequence[int], progress: Reporter, stop: threading.Event) -> Outcome:
        assignment = self._ready[number]
        self._worker.stop = stop
        if self._prepared != number:
            self._worker.prepare(assignment)
            self._prepared = number
        with log.Writer(assignment.predictions) as writer:
            return self._worker.do(assignment, phase, units, writer, progress)


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process among those that a launcher started on several machines."""

    rank: int = 0
    world_size: int = 1
    local_rank: int | None = None
    """Place among the processes that the launcher started on this machine; None where it is the only one."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Place:
        """Read what torchrun (RANK, WORLD_SIZE, LOCAL_RANK) or srun (SLURM_PROCID ...) supply.

        Raises:
            ConfigError: the variables are not numbers that fit together.
        """
        alone = (
            environment.get("LOCAL_WORLD_SIZE") == "1"
            or re.fullmatch(r"1(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")) is not None
        )
        for rank, size, local in (
            ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
            # Of the step, not SLURM_NTASKS: a batch script that calls evalkit without srun is one process of one.
            ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
        ):
            if rank in environment and size in environment:
                try:
                    place = cls(
                        rank=int(environment[rank]),
                        world_size=int(environment[size]),
                        local_rank=int(environment[local]) if local in environment and not alone else None,
                    )
                except ValueError:
                    place = cls(rank=-1)
                if not 0 <= place.rank < place.world_size:
                    raise ConfigError(
                        f"{rank}={environment[rank]} and {size}={environment[size]} in the environment are no rank and "
                        "world size; start through torchrun or srun, or unset them"
                    )
                return place
        return cls()

    def take_device(self) -> None:
        """Let a process that a launcher started beside others on this machine see only its own GPU."""
        if self.local_rank is not None and (gpus := _gpus()):
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[self.local_rank % len(gpus)]

    def share(self, assignment: Assignment, phase: str) -> list[int]:
        """Return this process's unfinished units of a phase. Sharded first, finished ones subtracted second."""
        todo = assignment.todo(phase)
        if self.world_size == 1:
            return todo
        if phase == "texts":
            return [index for index in todo if index % self.world_size == self.rank]
        mine = {unit.index for unit in plan.shard(assignment.units, self.world_size)[self.rank]}
        return [index for index in todo if index in mine]

    def wait_for_others(self, assignment: Assignment, phase: str, stop: threading.Event) -> bool:
        """Wait until a phase is complete, or nothing was written for `engine.heartbeat_s`: a host is lost then.

        What a lost host leaves is missing; scoring says so, and any later start finishes it. Where all was tried and
        some failed, the others may be trying it again: then a quiet minute is enough.

        Returns:
            Whether everything of the phase was tried.
        """
        heartbeat_s = assignment.engine.heartbeat_s
        seen, changed, unseen, told = (-1, -1), time.monotonic(), True, False
        while self.world_size > 1 and not stop.is_set():
            looked = time.monotonic()
            now = _written_below(assignment.folder)
            if now != seen:
                seen, changed = now, looked
            quiet_s = looked - changed
            if quiet_s == 0 or quiet_s > heartbeat_s:  # the last look: lines may become visible after their file's size
                unseen = assignment.unseen(phase)
                if not unseen and not assignment.todo(phase):
                    return True
            if not unseen and quiet_s > min(heartbeat_s, _QUIET_SECONDS):
                return True
            if quiet_s > heartbeat_s:
                _say(f"{assignment.label}: nobody has written anything for {heartbeat_s:.0f} s (engine.heartbeat_s)")
                return False
            if not told:
                told = True
                _say(f"{assignment.label}: this share is done (process {self.rank} of {self.world_size}); waiting")
            # Reading a long log takes a while, and others want the file system too.
            time.sleep(max(_POLL_SECONDS, 5 * (time.monotonic() - looked)))
        return True


def _written_below(folder: Path) -> tuple[int, int]:
    """Return the bytes in a run folder and its newest mtime (ns): they change while anybody works."""
    total = newest = 0
    for here, folders, files in os.walk(folder):
        for name in (*folders, *files):
            try:
                stat = os.stat(os.path.join(here, name))
            except FileNotFoundError:
                continue  # a temporary file that was renamed meanwhile, or a name that is seen before what it names
            total, newest = total + stat.st_size, max(newest, stat.st_mtime_ns)
    return total, newest


def _devices(asked: str, place: Place) -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES shall be for each worker; "" leaves it as it is.

    Without GPUs the workers are CPU workers, however many are asked for.
    """
    if asked != "auto" and (not asked.isdigit() or int(asked) < 1):
        raise ConfigError(f"devices={asked!r}: give a number from 1, or auto for all GPUs")
    if asked == "1" or (asked == "auto" and place.local_rank is not None):
        return [""]
    gpus = _gpus()
    if asked == "auto":
        return gpus or [""]
    if gpus and int(asked) > len(gpus):
        raise ConfigError(f"devices={asked}, but there are {len(gpus)} GPUs; give devices={len(gpus)} or devices=auto")
    return gpus[: int(asked)] or [""] * int(asked)


def _gpus() -> list[str]:
    """Return what names each GPU in CUDA_VISIBLE_DEVICES; torch, which takes seconds, is asked only with a driver."""
    if not any(Path(driver).exists() for driver in ("/dev/nvidiactl", "/dev/kfd")):
        return []
    import torch

    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible or [str(index) for index in range(torch.cuda.device_count())]


def _say(message: str) -> None:
    print(message, file=sys.stderr)
