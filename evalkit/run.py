"""The loop: encode each image once, ask all its questions, append what comes back.

Loader threads open and preprocess the images of the units ahead while the model works on the unit in hand. A sample
that cannot be answered becomes a prediction with an error: counted, never scored, and asked again by the next start.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from evalkit.errors import EvalkitError, ImageError, SampleError
from evalkit.log import Writer
from evalkit.progress import Progress
from evalkit.types import Dataset, Encoded, GeneratingModel, Prediction, Prompt, Sample, Task, Unit

_UNITS_AHEAD = 2
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


def predict(job: Job, units: Sequence[Unit], writer: Writer, progress: Progress) -> Outcome:
    """Answer the samples of these units and append them to the log.

    Raises:
        ResultsError: the log cannot be written.
        EvalkitError: the model refuses or is gone; anything else it raises makes failed samples, unless no sample at
            all can be answered, which is raised as it is.
    """
    outcome = Outcome()
    asker = _Asker(job, outcome)
    for unit, loaded in _load_ahead(job, units):
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
    return outcome


@contextmanager
def finish_batch_on_interrupt(stop: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C (or SIGTERM) set `stop`; a second one leaves at once with KeyboardInterrupt."""

    def handler(signum: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@dataclass(frozen=True)
class _Loaded:
    """A unit's images: preprocessed, or why not."""

    inputs: Mapping[str, Any]
    broken: Mapping[str, str]


def _load_ahead(job: Job, units: Sequence[Unit]) -> Iterator[tuple[Unit, _Loaded]]:
    pool = ThreadPoolExecutor(job.loader_threads, thread_name_prefix="loader")
    waiting: deque[tuple[Unit, dict[str, Future[Any]]]] = deque()
    left = iter(units)

    def submit() -> None:
        unit = next(left, None)
        if unit is not None:
            waiting.append((unit, {image_id: pool.submit(_load, job, image_id) for image_id in unit.image_ids}))

    try:
        for _ in range(1 + _UNITS_AHEAD):
            submit()
        while waiting:
            unit, futures = waiting.popleft()
            inputs: dict[str, Any] = {}
            broken: dict[str, str] = {}
            for image_id, future in futures.items():
                try:
                    inputs[image_id] = future.result()
                except ImageError as error:
                    broken[image_id] = str(error)
            submit()
            yield unit, _Loaded(inputs, broken)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _load(job: Job, image_id: str) -> Any:
    image = job.dataset.images.open(image_id)
    try:
        return job.model.preprocess(image)
    except EvalkitError:
        raise
    except Exception as error:  # one odd picture must not end the run: it is named in the log
        raise ImageError(f"image {image_id}: the model's preprocessing failed: {_reason(error)}") from error


class _Asker:
    """Asks the model, and turns what it cannot do into failed samples."""

    def __init__(self, job: Job, outcome: Outcome) -> None:
        self.job = job
        self.outcome = outcome
        self._none_answered = True
        self._failed_in_a_row = 0

    def unit(self, unit: Unit, loaded: _Loaded) -> Iterator[list[Prediction]]:
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
        try:
            encoded = self.job.model.encode([inputs[image_id] for image_id in image_ids])
        except EvalkitError as error:
            if not isinstance(error, SampleError | ImageError):
                raise
            yield from ([self._alone(sample, inputs)] for batch in batches for sample in batch)
        except Exception as error:  # noqa: BLE001 - each sample is then asked alone, and named if it fails
            owners = dict.fromkeys(sample.image_ids[0] for batch in batches for sample in batch)
            if _out_of_memory(error) and len(owners) > 1:
                self.outcome.memory_errors += 1
                first = set(list(owners)[: len(owners) // 2])
                for half in (True, False):
                    part = [[s for s in batch if (s.image_ids[0] in first) is half] for batch in batches]
                    ids = list(dict.fromkeys(i for batch in part for s in batch for i in s.image_ids))
                    yield from self._images(ids, [batch for batch in part if batch], inputs)
            else:
                yield from ([self._alone(sample, inputs)] for batch in batches for sample in batch)
        else:
            rows = {image_id: row for row, image_id in enumerate(image_ids)}
            for batch in batches:
                yield from self._batch(encoded, rows, batch, inputs)

    def _batch(
        self, encoded: Encoded, rows: Mapping[str, int], batch: Sequence[Sample], inputs: Mapping[str, Any]
    ) -> Iterator[list[Prediction]]:
        start = time.monotonic()
        try:
            outputs = self._ask(encoded, rows, batch)
        except EvalkitError as error:
            if not isinstance(error, SampleError | ImageError):
                raise
            yield [self._alone(sample, inputs) for sample in batch]
        except Exception as error:  # noqa: BLE001 - each sample is then asked alone, and named if it fails
            if _out_of_memory(error) and len(batch) > 1:
                self.outcome.memory_errors += 1
                middle = len(batch) // 2
                yield from self._batch(encoded, rows, batch[:middle], inputs)
                yield from self._batch(encoded, rows, batch[middle:], inputs)
            else:
                yield [self._alone(sample, inputs) for sample in batch]
        else:
            self._none_answered, self._failed_in_a_row = False, 0
            seconds = (time.monotonic() - start) / len(batch)
            yield [
                Prediction(sample_id=sample.id, output=output, prompt=self._prompt(sample), seconds=seconds)
                for sample, output in zip(batch, outputs, strict=True)
            ]

    def _alone(self, sample: Sample, inputs: Mapping[str, Any]) -> Prediction:
        """Ask one sample with nothing beside it; what still fails is a failed sample."""
        start = time.monotonic()
        try:
            encoded = self.job.model.encode([inputs[image_id] for image_id in sample.image_ids])
            rows = {image_id: row for row, image_id in enumerate(sample.image_ids)}
            (output,) = self._ask(encoded, rows, [sample])
        except EvalkitError as error:
            if not isinstance(error, SampleError | ImageError):
                raise
            return self._failed(sample, str(error))
        except Exception as error:
            self._failed_in_a_row += 1
            if self._none_answered and self._failed_in_a_row >= _GIVE_UP_AFTER:
                raise
            return self._failed(sample, _reason(error))
        self._none_answered, self._failed_in_a_row = False, 0
        return Prediction(
            sample_id=sample.id, output=output, prompt=self._prompt(sample), seconds=time.monotonic() - start
        )

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
        if decoding.rank_candidates:
            outputs = job.model.rank(encoded, prompts, job.dataset.candidates, decoding.rank_candidates)
        else:
            outputs = job.model.generate(encoded, prompts, decoding)
        assert len(outputs) == len(prompts), f"{len(outputs)} outputs for {len(prompts)} prompts"
        return outputs

    def _prompt(self, sample: Sample) -> str:
        return self.job.prompts[sample.id]

    def _failed(self, sample: Sample, reason: str) -> Prediction:
        return Prediction(sample_id=sample.id, output=None, prompt=self._prompt(sample), error=reason)


def _out_of_memory(error: BaseException) -> bool:
    # torch.OutOfMemoryError by name: this module does not import torch, and other frameworks name theirs alike.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
