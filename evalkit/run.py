"""The loop: encode each image once, ask all its questions, append what comes back.

Loader threads open and preprocess the images of the units ahead while the model works on the unit in hand. A sample
that cannot be answered becomes a prediction with an error: counted, never scored, and asked again by the next start.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from evalkit.choice import Chooser
from evalkit.errors import EvalkitError, ImageError, SampleError
from evalkit.loading import Loaded, load_ahead
from evalkit.log import Writer
from evalkit.progress import Reporter
from evalkit.types import Dataset, Encoded, GeneratingModel, Prediction, Prompt, Sample, Task, Unit

_STOPPING = b"stopping after the batch in hand; Ctrl-C once more leaves at once, what is written is kept either way\n"

_GIVE_UP_AFTER = 64
"""Samples that fail in a row, with none answered before them, after which the fault is the model's, not theirs."""


@dataclass
class Outcome:
    """What a process did."""

    asked: int = 0
    failed: int = 0
    memory_errors: int = 0
    """Batches that were halved because the device ran out of memory; lifts the promise of bit-equal answers."""
    interrupted: bool = False

    def add(self, other: Outcome) -> None:
        """Count another's work too."""
        self.asked += other.asked
        self.failed += other.failed
        self.memory_errors += other.memory_errors
        self.interrupted |= other.interrupted


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the loop needs to know, besides the units."""

    task: Task
    dataset: Dataset
    model: GeneratingModel
    prompts: Mapping[str, str]
    """The filled prompt of each sample id."""
    answered: Collection[str]
    """Ids with an answer in the log: their unit may be run again, they are not appended again."""
    loader_threads: int = 4
    stop: threading.Event = field(default_factory=threading.Event)
    """Set from outside: finish the batch in hand and return."""


def predict(
    job: Job,
    units: Iterable[Unit],
    writer: Writer,
    progress: Reporter,
    done: Callable[[Unit], None] = lambda unit: None,
) -> Outcome:
    """Answer the samples of these units and append them to the log; call `done` when all of a unit is in it.

    Raises:
        ResultsError: the log cannot be written.
        EvalkitError: the model refuses or is gone; anything else it raises makes failed samples, unless no sample at
            all can be answered, which is raised as it is.
    """
    outcome = Outcome()
    asker = _Asker(job, outcome)
    for unit, loaded in load_ahead(job.dataset, job.model, units, job.loader_threads):
        images = len(unit.image_ids)
        for predictions in asker.unit(unit, loaded):
            fresh = [prediction for prediction in predictions if prediction.sample_id not in job.answered]
            failed = sum(prediction.error is not None for prediction in fresh)
            writer.append(fresh)
            outcome.asked += len(fresh)
            outcome.failed += failed
            progress.advance(samples=len(fresh), images=images, failed=failed)
            images = 0
            if job.stop.is_set():
                outcome.interrupted = True
                return outcome
        done(unit)
    return outcome


@contextmanager
def finish_batch_on_interrupt(stop: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C (or SIGTERM) set `stop`; a second one leaves at once with KeyboardInterrupt."""

    def handler(signum: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        with suppress(OSError):  # nobody may read it; and not through sys.stderr, which may be in use just now
            os.write(2, (b"\n" if os.isatty(2) else b"") + _STOPPING)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class _Asker:
    """Asks the model, and turns what it cannot do into failed samples."""

    def __init__(self, job: Job, outcome: Outcome) -> None:
        self.job = job
        self.outcome = outcome
        self._chooser = Chooser(job.model)
        self._none_answered = True
        self._failed_in_a_row = 0

    def unit(self, unit: Unit, loaded: Loaded) -> Iterator[list[Prediction]]:
        broken = {
            sample.id: loaded.broken[image_id]
            for sample in unit.samples
            for image_id in sample.image_ids
            if image_id in loaded.broken
        }
        if broken:
            yield [self._failed(sample, broken[sample.id]) for sample in unit.samples if sample.id in broken]
        batches = [[sample for sample in batch if sample.id not in broken] for batch in unit.batches]
        image_ids = [image_id for image_id in unit.image_ids if image_id in loaded.inputs]
        yield from self._images(image_ids, [batch for batch in batches if batch], loaded.inputs)

    def _images(
        self, image_ids: Sequence[str], batches: Sequence[Sequence[Sample]], inputs: Mapping[str, Any]
    ) -> Iterator[list[Prediction]]:
        """Encode these images together; with less memory, in halves; after an error, each sample on its own."""
        if not batches:
            return
        encoded: Encoded | None = None
        memory = False
        try:
            encoded = self.job.model.encode([inputs[image_id] for image_id in image_ids])
        except Exception as error:
            if is_final(error):
                raise
            memory = out_of_memory(error)
        # Outside of the handler: a live exception keeps the failed call's frames, and with them the memory it took.
        owners = list(dict.fromkeys(sample.image_ids[0] for batch in batches for sample in batch))
        if encoded is not None:
            rows = {image_id: row for row, image_id in enumerate(image_ids)}
            for batch in batches:
                yield from self._batch(encoded, rows, batch, inputs)
        elif memory and len(owners) > 1:
            self.outcome.memory_errors += 1
            first = set(owners[: len(owners) // 2])
            for half in (True, False):
                part = [[s for s in batch if (s.image_ids[0] in first) is half] for batch in batches]
                ids = list(dict.fromkeys(i for batch in part for s in batch for i in s.image_ids))
                yield from self._images(ids, [batch for batch in part if batch], inputs)
        else:
            yield from ([self._alone(sample, inputs)] for batch in batches for sample in batch)

    def _batch(
        self, encoded: Encoded, rows: Mapping[str, int], batch: Sequence[Sample], inputs: Mapping[str, Any]
    ) -> Iterator[list[Prediction]]:
        start = time.monotonic()
        outputs: list[str] | None = None
        memory = False
        try:
            outputs = self._ask(encoded, rows, batch)
        except Exception as error:
            if is_final(error):
                raise
            memory = out_of_memory(error)
        if outputs is not None:
            _check(outputs, batch)
            self._none_answered, self._failed_in_a_row = False, 0
            seconds = (time.monotonic() - start) / len(batch)
            yield [
                Prediction(sample_id=sample.id, output=output, prompt=self._logged(sample), seconds=seconds)
                for sample, output in zip(batch, outputs, strict=True)
            ]
        elif memory and len(batch) > 1:
            self.outcome.memory_errors += 1
            middle = len(batch) // 2
            yield from self._batch(encoded, rows, batch[:middle], inputs)
            yield from self._batch(encoded, rows, batch[middle:], inputs)
        else:
            yield from ([self._alone(sample, inputs)] for sample in batch)

    def _alone(self, sample: Sample, inputs: Mapping[str, Any]) -> Prediction:
        """Ask one sample with nothing beside it; what still fails is a failed sample."""
        start = time.monotonic()
        try:
            encoded = self.job.model.encode([inputs[image_id] for image_id in sample.image_ids])
            rows = {image_id: row for row, image_id in enumerate(sample.image_ids)}
            outputs = self._ask(encoded, rows, [sample])
        except (SampleError, ImageError) as error:
            return self._failed(sample, str(error))
        except Exception as error:
            self._failed_in_a_row += 1
            if is_final(error) or (self._none_answered and self._failed_in_a_row >= _GIVE_UP_AFTER):
                raise
            return self._failed(sample, reason_of(error))
        _check(outputs, [sample])
        self._none_answered, self._failed_in_a_row = False, 0
        seconds = time.monotonic() - start
        return Prediction(sample_id=sample.id, output=outputs[0], prompt=self._logged(sample), seconds=seconds)

    def _ask(self, encoded: Encoded, rows: Mapping[str, int], batch: Sequence[Sample]) -> list[str]:
        job, decoding = self.job, self.job.task.decoding
        prompts = [
            Prompt(
                sample_id=sample.id,
                text=self._prompt(sample),
                rows=tuple(rows[image_id] for image_id in sample.image_ids),
            )
            for sample in batch
        ]
        if job.task.kind == "choose":
            options = [sample.options for sample in batch]
            return self._chooser.choose(encoded, prompts, options, match=job.task.matches)
        if decoding.rank_candidates:
            return job.model.rank(encoded, prompts, job.dataset.candidates, decoding.rank_candidates)
        return job.model.generate(encoded, prompts, decoding)

    def _prompt(self, sample: Sample) -> str:
        return self.job.prompts[sample.id]

    def _logged(self, sample: Sample) -> str | None:
        """Return the prompt for the log; None where it is the template that all share, which the manifest has."""
        task, prompt = self.job.task, self._prompt(sample)
        return None if task.matches and prompt == task.template else prompt

    def _failed(self, sample: Sample, reason: str) -> Prediction:
        return Prediction(sample_id=sample.id, output=None, prompt=self._logged(sample), error=reason)


def _check(outputs: Sequence[str], batch: Sequence[Sample]) -> None:
    """Stop at an adapter's bug: outputs that cannot be paired with their samples are no failed samples."""
    assert len(outputs) == len(batch), f"the model gave {len(outputs)} outputs for {len(batch)} prompts"
    odd = next((output for output in outputs if not isinstance(output, str)), "")
    assert odd == "", f"the model gave {odd!r}, which is not text; it raises SampleError where it has no answer"


def is_final(error: Exception) -> bool:
    """Whether an error is about more than the samples in hand: the model refuses, or is gone."""
    return isinstance(error, EvalkitError) and not isinstance(error, SampleError | ImageError)


def out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine has no room for what was asked at once."""
    # torch.OutOfMemoryError by name: this module does not import torch, and other frameworks name theirs alike.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def reason_of(error: BaseException) -> str:
    """Return what the log says about an exception that is no EvalkitError."""
    return f"{type(error).__name__}: {error}"
