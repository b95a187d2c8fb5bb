"""Who does the work: this process, or worker processes on its devices; and which share of a run is this machine's."""

from __future__ import annotations

import os
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


class Crew(Protocol):
    """Does units of a phase, wherever."""

    def run(self, number: int, phase: str, units: Sequence[int], progress: Reporter, stop: threading.Event) -> Outcome:
        """Do these units of a phase of task `number`; with `stop`, finish the batches in hand."""


@contextmanager
def crew_of(config: RunConfig, model: Model, ready: Sequence[Assignment], place: Place) -> Iterator[Crew]:
    """Provide the workers that `devices=` asks for."""
    devices = _devices(config.devices, place)
    if config.engine.kind != "local":
        raise UnsupportedError(f"engine={config.engine.kind} is not known; known: local")
    if len(devices) == 1:
        yield _InProcess(model, ready)
        return
    from evalkit.supervisor import Supervisor

    job = {
        "config": configuration.to_mapping(config),
        "asked": ["prompt_style"] if config.style_asked else [],
        "folders": [str(assignment.folder) for assignment in ready],
    }
    with Supervisor(job, devices, config.engine) as supervisor:
        yield supervisor


class _InProcess:
    """One device: the work is done here."""

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

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Place:
        """Read what torchrun (RANK, WORLD_SIZE, LOCAL_RANK) or srun (SLURM_PROCID ...) supply.

        Raises:
            ConfigError: the variables are not numbers that fit together.
        """
        for rank, size, local in (
            ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
            ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
        ):
            if rank in environment and size in environment:
                try:
                    place = cls(
                        rank=int(environment[rank]),
                        world_size=int(environment[size]),
                        local_rank=int(environment[local]) if local in environment else None,
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
        gpus = _num_gpus() if self.local_rank is not None else 0
        if gpus > 1:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
            os.environ["CUDA_VISIBLE_DEVICES"] = visible[(self.local_rank or 0) % len(visible)]

    def share(self, assignment: Assignment, phase: str) -> list[int]:
        """Return this process's unfinished units of a phase. Sharded first, finished ones subtracted second."""
        todo = assignment.todo(phase)
        if self.world_size == 1:
            return todo
        if phase == "texts":
            return [index for index in todo if index % self.world_size == self.rank]
        mine = {unit.index for unit in plan.shard(assignment.units, self.world_size)[self.rank]}
        return [index for index in todo if index in mine]

    def wait_for_others(self, assignment: Assignment, phase: str, stop: threading.Event) -> None:
        """Wait until a phase is complete, or until nothing was written for `engine.heartbeat_s`: a host is lost then.

        What a lost host leaves is missing; scoring says so, and any later start finishes it.
        """
        if self.world_size == 1:
            return
        size, changed = -1, time.monotonic()
        while not stop.is_set():
            now = _bytes_below(assignment.folder)
            if now != size:
                size, changed = now, time.monotonic()
                if not assignment.todo(phase):
                    return
            elif time.monotonic() - changed > assignment.engine.heartbeat_s:
                return
            time.sleep(_POLL_SECONDS)


def _bytes_below(folder: Path) -> int:
    """Return the size of everything written in a run folder: it grows while anybody works."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue  # a temporary file that was renamed meanwhile
    return total


def _devices(asked: str, place: Place) -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES shall be for each worker; "" leaves it as it is.

    Without GPUs the workers are CPU workers, however many are asked for.
    """
    if asked != "auto" and (not asked.isdigit() or int(asked) < 1):
        raise ConfigError(f"devices={asked!r}: give a number from 1, or auto for all GPUs")
    if asked == "1" or (asked == "auto" and place.local_rank is not None):
        return [""]
    gpus = _num_gpus()
    if asked == "auto":
        return [str(index) for index in range(gpus)] or [""]
    if gpus and int(asked) > gpus:
        raise ConfigError(f"devices={asked}, but there are {gpus} GPUs; give devices={gpus} or devices=auto")
    return [str(index) if gpus else "" for index in range(int(asked))]


def _num_gpus() -> int:
    """Return how many GPUs torch sees; without a driver it is not even asked, since its import takes seconds."""
    if not any(Path(driver).exists() for driver in ("/dev/nvidiactl", "/dev/kfd")):
        return 0
    import torch

    return torch.cuda.device_count()
