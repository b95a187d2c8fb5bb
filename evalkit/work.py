"""What a worker does, in this process or in one of its own: prepare a task, then do the units it is handed.

A task has phases: one for questions, three for retrieval (texts, images, pairs). A unit belongs to its phase by number,
so a message between processes is a word and an int.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from evalkit import log, plan, retrieval
from evalkit.config import EngineConfig
from evalkit.progress import Reporter
from evalkit.run import Job, Outcome, predict
from evalkit.types import Dataset, Model, Task, Unit


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One task, ready to run: its data, its prompts and where its results go."""

    task: Task
    dataset: Dataset
    prompts: Mapping[str, str]
    label: str
    """The folder name: the family for its default variant, else family-variant."""
    folder: Path
    engine: EngineConfig

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """The plan: the same in every process, whatever is finished."""
        return tuple(
            plan.cut(
                plan.in_order(self.dataset.samples),
                image_batch=self.engine.image_batch,
                prompt_batch=self.engine.prompt_batch,
                length=lambda sample: len(self.prompts.get(sample.id, "")),
            )
        )

    @property
    def predictions(self) -> Path:
        """The folder of the log."""
        return self.folder / "predictions"

    def answered(self) -> set[str]:
        """Return the ids that have an answer in the log now."""
        return log.read_log(self.predictions).answered()

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases in order; each starts when the one before is complete, on all machines."""
        return ("texts", "images", "pairs") if self.task.kind == "retrieve" else ("questions",)

    def todo(self, phase: str) -> list[int]:
        """Return the units of a phase that nobody has finished yet, in plan order."""
        if phase in ("texts", "images"):
            return retrieval.missing_features(self.folder, self.units, self.dataset.texts, phase)
        return [unit.index for unit in plan.unfinished(self.units, self.answered())]

    def unseen(self, phase: str) -> bool:
        """Return whether something of a phase is missing that nobody has even tried."""
        if phase in ("texts", "images"):
            return bool(self.todo(phase))
        return bool(plan.unfinished(self.units, log.read_log(self.predictions).predictions))


@dataclass
class Worker:
    """A model and the units it is handed, for one assignment after another."""

    model: Model
    stop: threading.Event = field(default_factory=threading.Event)

    def prepare(self, assignment: Assignment) -> None:
        """Load what the task needs; a baseline is told the references."""
        if hasattr(self.model, "study"):
            self.model.study(assignment.task, assignment.dataset)
        self.model.prepare(assignment.task)

    def do(
        self,
        assignment: Assignment,
        phase: str,
        units: Iterable[int],
        writer: log.Writer,
        progress: Reporter,
        done: Callable[[int], None] = lambda index: None,
        again: Collection[int] = (),
    ) -> Outcome:
        """Do these units of a phase; call `done` with each that is finished.

        Args:
            assignment: the task.
            phase: one of its phases.
            units: as they are handed out; the next one may come while one is worked on.
            writer: appends to the log.
            progress: hears of every batch.
            done: hears of every unit.
            again: units that somebody who is gone has begun, perhaps; it may grow meanwhile. What is in the log of
                them by now is not appended once more.
        """
        answered = assignment.answered() if phase in ("questions", "pairs") else set()

        def handed() -> Iterator[Unit]:
            for index in units:
                if index in again and phase in ("questions", "pairs"):
                    answered.update(assignment.answered())
                yield assignment.units[index]

        mine = handed()
        if phase == "questions":
            job = Job(
                task=assignment.task,
                dataset=assignment.dataset,
                model=cast("Any", self.model),
                prompts=assignment.prompts,
                answered=answered,
                loader_threads=assignment.engine.loader_threads,
                stop=self.stop,
            )
            return predict(job, mine, writer, progress, lambda unit: done(unit.index))
        pairs = retrieval.RetrievalJob(
            task=assignment.task,
            dataset=assignment.dataset,
            model=cast("Any", self.model),
            units=assignment.units,
            folder=assignment.folder,
            answered=answered,
            pair_batch=assignment.engine.prompt_batch,
            loader_threads=assignment.engine.loader_threads,
            stop=self.stop,
            alive=lambda: progress.advance(samples=0, images=0),
        )
        if phase == "pairs":
            return retrieval.match(pairs, mine, writer, progress, lambda unit: done(unit.index))
        images: Iterable[Unit] = mine if phase == "images" else ()
        texts: Iterable[int] = units if phase == "texts" else ()
        return retrieval.embed(pairs, images, texts, done)
