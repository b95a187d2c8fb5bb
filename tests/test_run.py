"""The loop: encode an image once, ask all its questions in fixed batches, and never call a failure an answer."""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from evalkit.errors import ImageError, ModelError, SampleError, UnsupportedError
from evalkit.log import Writer, read_log
from evalkit.plan import cut, in_order, unfinished
from evalkit.run import Job, Outcome, finish_batch_on_interrupt, predict
from evalkit.types import Dataset, Decoding, Metric, Prediction, Prompt, Sample, Scores, Task


class Images:
    """An image store: the picture of an id is its name. Some cannot be had whole."""

    def __init__(self, broken: Sequence[str] = (), seconds: float = 0.0) -> None:
        self.broken, self.seconds = set(broken), seconds
        self.opened: list[str] = []
        self.threads: set[str] = set()

    def open(self, image_id: str) -> Any:
        self.opened.append(image_id)
        self.threads.add(threading.current_thread().name)
        time.sleep(self.seconds)
        if image_id in self.broken:
            raise ImageError(f"image {image_id!r} cannot be decoded whole")
        return image_id

    def missing(self, image_ids: Sequence[str]) -> list[str]:
        return []


class Rows(tuple[str, ...]):
    """Encoded images: their names."""

    def select(self, rows: Sequence[int]) -> Rows:
        return Rows(self[row] for row in rows)


class Echo:
    """Answers with the prompt and the names of its images, and remembers what it was asked."""

    capabilities = frozenset({"generate", "rank"})

    def __init__(self, trouble: Callable[[Sequence[Prompt]], None] = lambda prompts: None) -> None:
        self.trouble = trouble
        self.encoded: list[tuple[str, ...]] = []
        self.batches: list[tuple[str, ...]] = []

    def preprocess(self, image: str) -> str:
        return image

    def encode(self, inputs: Sequence[str]) -> Rows:
        self.encoded.append(tuple(inputs))
        return Rows(inputs)

    def generate(self, encoded: Any, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        self.batches.append(tuple(prompt.sample_id for prompt in prompts))
        self.trouble(prompts)
        return [f"{prompt.text}@{'+'.join(encoded.select(prompt.rows))}" for prompt in prompts]

    def rank(self, encoded: Any, prompts: Sequence[Prompt], candidates: Sequence[str], keep: int) -> list[str]:
        return [f"{candidates[-1]} of {keep}" for _ in prompts]


class Reports:
    """Counts what the loop reports."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def advance(self, **counts: int) -> None:
        self.counts.update(counts)


class OutOfMemoryError(RuntimeError):
    """Goes by the name of torch's."""


def task(**changes: Any) -> Task:
    return dataclasses.replace(
        Task(
            name="made/up",
            kind="generate",
            summary="",
            load=lambda source: Dataset(samples=(), images=Images()),
            metrics=(Metric(name="m", compute=lambda answered, settings: Scores()),),
            primary="m",
        ),
        **changes,
    )


def questions(images: int, each: int) -> list[Sample]:
    return [
        Sample(id=f"{image}.{number}", image_ids=(f"i{image}",)) for image in range(images) for number in range(each)
    ]


class Run:
    """A run folder and what it takes to continue it."""

    def __init__(self, folder: Path, samples: Sequence[Sample], *, image_batch: int = 4, prompt_batch: int = 3) -> None:
        self.folder, self.images, self.task = folder, Images(), task()
        self.samples = in_order(samples)
        self.prompts = {sample.id: f"q{sample.id}" for sample in samples}
        self.units = cut(self.samples, image_batch=image_batch, prompt_batch=prompt_batch, length=lambda s: len(s.id))
        self.reports, self.stop = Reports(), threading.Event()
        self.finished: list[int] = []

    def go(self, model: Any) -> Outcome:
        answered = read_log(self.folder).answered()
        job = Job(
            task=self.task,
            dataset=Dataset(samples=tuple(self.samples), images=self.images, candidates=("red", "blue")),
            model=model,
            prompts=self.prompts,
            answered=answered,
            stop=self.stop,
        )
        with Writer(self.folder) as writer:
            return predict(
                job,
                unfinished(self.units, answered),
                writer,
                self.reports,
                lambda unit: self.finished.append(unit.index),
            )

    def log(self) -> dict[str, Prediction]:
        return dict(read_log(self.folder).predictions)

    def num_lines(self) -> int:
        return sum(file.read_bytes().count(b"\n") for file in self.folder.glob("*.jsonl"))


def right(run: Run, but: Sequence[str] = ()) -> bool:
    """Whether every sample has the answer that Echo gives, but those."""
    log = run.log()
    return all(
        log[sample.id].output == f"q{sample.id}@{'+'.join(sample.image_ids)}" and log[sample.id].error is None
        for sample in run.samples
        if sample.id not in but
    )


def test_each_image_is_opened_and_encoded_once_for_all_its_questions(tmp_path: Path) -> None:
    run, model = Run(tmp_path, questions(10, 5)), Echo()
    outcome = run.go(model)
    assert Counter(image for batch in model.encoded for image in batch) == Counter(f"i{image}" for image in range(10))
    assert sorted(run.images.opened) == sorted(f"i{image}" for image in range(10))
    assert right(run)
    assert outcome == Outcome(asked=50)
    assert run.reports.counts == {"samples": 50, "images": 10, "failed": 0}
    assert run.finished == [unit.index for unit in run.units]


def test_prompt_and_time_are_in_the_log(tmp_path: Path) -> None:
    run = Run(tmp_path, questions(1, 2))
    run.go(Echo(lambda prompts: time.sleep(0.05)))
    (one, other) = run.log().values()
    assert (one.prompt, other.prompt) == ("q0.0", "q0.1")
    assert 0.02 <= one.seconds < 1


def test_batches_are_those_of_the_plan(tmp_path: Path) -> None:
    run, model = Run(tmp_path, questions(5, 4)), Echo()
    run.go(model)
    assert model.batches == [tuple(s.id for s in batch) for unit in run.units for batch in unit.batches]


def test_a_half_done_unit_is_asked_again_whole_and_only_what_is_missing_is_written(tmp_path: Path) -> None:
    quiet, model = Run(tmp_path / "quiet", questions(6, 4)), Echo()
    quiet.go(model)
    unit = quiet.units[0]
    half = [sample.id for sample in unit.samples][: len(unit.samples) // 2]
    run = Run(tmp_path / "resumed", questions(6, 4))
    with Writer(run.folder) as writer:
        writer.append([quiet.log()[key] for key in half])
    again = Echo()
    outcome = run.go(again)
    assert again.batches == model.batches, "the same batches: what stands beside a prompt never changes"
    assert run.num_lines() == len(run.samples)
    assert outcome.asked == len(run.samples) - len(half)
    assert {k: v.output for k, v in run.log().items()} == {k: v.output for k, v in quiet.log().items()}
    idle = Echo()
    assert run.go(idle) == Outcome()
    assert (idle.encoded, idle.batches, run.num_lines()) == ([], [], len(run.samples))


def test_a_sample_of_several_images_gets_its_rows_in_its_own_order(tmp_path: Path) -> None:
    samples = [
        Sample(id="a", image_ids=("x", "y", "z")),
        Sample(id="b", image_ids=("x", "z", "x")),
        Sample(id="c", image_ids=("y",)),
        Sample(id="d", image_ids=("z", "y")),
    ]
    for size in (1, 2, 3):
        run = Run(tmp_path / str(size), samples, image_batch=size)
        run.go(Echo())
        assert {key: each.output for key, each in run.log().items()} == {
            "a": "qa@x+y+z",
            "b": "qb@x+z+x",
            "c": "qc@y",
            "d": "qd@z+y",
        }


def test_candidates_are_ranked_where_the_task_ranks(tmp_path: Path) -> None:
    run = Run(tmp_path, questions(1, 1))
    run.task = task(decoding=Decoding(rank_candidates=7))
    run.go(Echo())
    assert run.log()["0.0"].output == "blue of 7"


def test_images_are_loaded_ahead_in_threads(tmp_path: Path) -> None:
    """While the model works on a unit, the images of the next ones are opened: the two times do not add up."""
    run = Run(tmp_path, questions(16, 1), image_batch=2)
    run.images = Images(seconds=0.04)
    opened: list[int] = []
    begin = time.monotonic()
    run.go(Echo(lambda prompts: (opened.append(len(run.images.opened)), time.sleep(0.02))[-1]))
    spent = time.monotonic() - begin
    assert not any(name == threading.current_thread().name for name in run.images.threads)
    assert opened[0] > 2, "more than the images of the unit in hand"
    assert opened[0] < 16, "but not all there are: memory is finite"
    assert spent < 16 * 0.04


def test_a_broken_image_fails_its_samples_only_and_they_are_tried_again(tmp_path: Path) -> None:
    run, model = Run(tmp_path, questions(6, 2)), Echo()
    run.images.broken = {"i3"}
    outcome = run.go(model)
    assert (outcome.asked, outcome.failed) == (12, 2)
    assert run.reports.counts["failed"] == 2
    assert right(run, but=("3.0", "3.1"))
    failed = run.log()["3.0"]
    assert (failed.output, failed.prompt) == (None, "q3.0")
    assert failed.error == "image 'i3' cannot be decoded whole"
    assert "i3" not in {image for batch in model.encoded for image in batch}
    run.images.broken = set()
    outcome = run.go(Echo())
    assert (outcome.asked, outcome.failed) == (2, 0)
    assert right(run)


def test_a_picture_that_preprocessing_cannot_take_is_a_failed_sample(tmp_path: Path) -> None:
    class Picky(Echo):
        def preprocess(self, image: str) -> str:
            if image == "i1":
                raise ZeroDivisionError("aspect ratio")
            return image

    run = Run(tmp_path, questions(3, 1))
    run.go(Picky())
    assert right(run, but=("1.0",))
    assert "ZeroDivisionError: aspect ratio" in (run.log()["1.0"].error or "")


def test_any_other_exception_asks_each_alone_and_names_what_still_fails(tmp_path: Path) -> None:
    def trouble(prompts: Sequence[Prompt]) -> None:
        if any(prompt.sample_id == "0.1" for prompt in prompts):
            raise RuntimeError("bad token")

    run, model = Run(tmp_path, questions(3, 3)), Echo(trouble)
    outcome = run.go(model)
    assert (outcome.asked, outcome.failed, outcome.memory_errors) == (9, 1, 0)
    assert right(run, but=("0.1",))
    assert (run.log()["0.1"].output, run.log()["0.1"].error) == (None, "RuntimeError: bad token")
    assert sum(len(batch) == 1 for batch in model.batches) == 3, "only the batch that failed was taken apart"
    assert run.num_lines() == 9


def test_an_exception_of_encode_asks_each_alone(tmp_path: Path) -> None:
    class Fragile(Echo):
        def encode(self, inputs: Sequence[str]) -> Rows:
            if "i2" in inputs:
                raise ValueError("odd size")
            return super().encode(inputs)

    run = Run(tmp_path, questions(4, 2))
    assert run.go(Fragile()).failed == 2
    assert right(run, but=("2.0", "2.1"))
    assert run.log()["2.1"].error == "ValueError: odd size"


@pytest.mark.parametrize("kind", [SampleError, ImageError])
def test_a_sample_the_model_cannot_take_is_named_in_its_words(tmp_path: Path, kind: type[Exception]) -> None:
    def trouble(prompts: Sequence[Prompt]) -> None:
        if any(prompt.sample_id == "1.0" for prompt in prompts):
            raise kind("the server refuses this prompt")

    run = Run(tmp_path, questions(3, 1))
    run.go(Echo(trouble))
    assert right(run, but=("1.0",))
    assert run.log()["1.0"].error == "the server refuses this prompt"


def test_out_of_memory_halves_the_batch_and_is_counted(tmp_path: Path) -> None:
    def trouble(prompts: Sequence[Prompt]) -> None:
        if len(prompts) > 2:
            raise OutOfMemoryError("allocate")

    run, model = Run(tmp_path, questions(1, 8), prompt_batch=8), Echo(trouble)
    outcome = run.go(model)
    assert [len(batch) for batch in model.batches] == [8, 4, 2, 2, 4, 2, 2]
    assert outcome == Outcome(asked=8, memory_errors=3)
    assert right(run)


def test_out_of_memory_of_encode_halves_the_images(tmp_path: Path) -> None:
    class Small(Echo):
        def encode(self, inputs: Sequence[str]) -> Rows:
            if len(inputs) > 2:
                raise OutOfMemoryError("allocate")
            return super().encode(inputs)

    run, model = Run(tmp_path, questions(8, 2), image_batch=8), Small()
    outcome = run.go(model)
    assert [len(batch) for batch in model.encoded] == [2, 2, 2, 2]
    assert outcome == Outcome(asked=16, memory_errors=3)
    assert right(run)


def test_out_of_memory_with_one_prompt_is_a_failed_sample(tmp_path: Path) -> None:
    def trouble(prompts: Sequence[Prompt]) -> None:
        if any(prompt.sample_id == "0.1" for prompt in prompts):
            raise OutOfMemoryError("allocate")

    run = Run(tmp_path, questions(1, 4), prompt_batch=4)
    outcome = run.go(Echo(trouble))
    assert (outcome.failed, outcome.memory_errors) == (1, 2)
    assert right(run, but=("0.1",))


@pytest.mark.parametrize("where", ["encode", "generate"])
def test_what_ran_out_of_memory_is_let_go_before_the_next_try(tmp_path: Path, where: str) -> None:
    """A live exception keeps the frames of the failed call: halving would find the memory still taken."""

    class Tensor:
        pass

    held: list[weakref.ref[Tensor]] = []

    class Greedy(Echo):
        def take(self, name: str, count: int) -> None:
            big = Tensor()
            assert not any(reference() for reference in held), "the failed call still holds its memory"
            if name == where and count > 1:
                held.append(weakref.ref(big))
                raise OutOfMemoryError("allocate")

        def encode(self, inputs: Sequence[str]) -> Rows:
            self.take("encode", len(inputs))
            return super().encode(inputs)

        def generate(self, encoded: Any, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
            self.take("generate", len(prompts))
            return super().generate(encoded, prompts, decoding)

    gc.disable()
    try:
        run = Run(tmp_path, questions(4, 1), prompt_batch=4)
        outcome = run.go(Greedy())
    finally:
        gc.enable()
    assert outcome == Outcome(asked=4, memory_errors=3)


def test_when_nothing_at_all_can_be_answered_the_fault_is_raised_as_it_is(tmp_path: Path) -> None:
    def trouble(prompts: Sequence[Prompt]) -> None:
        raise KeyError("no such layer")

    run = Run(tmp_path, questions(100, 2))
    with pytest.raises(KeyError, match="no such layer"):
        run.go(Echo(trouble))
    assert 0 < run.num_lines() < 100, "it gave up early, and what had failed by then is in the log"
    run.go(Echo())
    assert right(run)


def test_many_failures_after_an_answer_are_failed_samples(tmp_path: Path) -> None:
    def trouble(prompts: Sequence[Prompt]) -> None:
        if any(prompt.sample_id != "0.0" for prompt in prompts):
            raise KeyError("odd")

    run = Run(tmp_path, questions(200, 1), prompt_batch=1)
    assert run.go(Echo(trouble)).failed == 199


@pytest.mark.parametrize("kind", [UnsupportedError, ModelError])
def test_a_model_that_refuses_ends_the_run_and_keeps_what_is_written(tmp_path: Path, kind: type[Exception]) -> None:
    def trouble(prompts: Sequence[Prompt]) -> None:
        if any(prompt.sample_id == "5.0" for prompt in prompts):
            raise kind("the server is gone")

    run = Run(tmp_path, questions(10, 1), prompt_batch=1)
    with pytest.raises(kind, match="the server is gone"):
        run.go(Echo(trouble))
    assert set(run.log()) == {f"{image}.0" for image in range(5)}


@pytest.mark.parametrize(
    "outputs", [[], ["one"], ["one"] * 4, [None, "b", "c"], ["a", 2, "c"]], ids=["none", "less", "more", "null", "int"]
)
def test_outputs_that_cannot_be_paired_with_prompts_are_a_bug_of_the_adapter(
    tmp_path: Path, outputs: list[Any]
) -> None:
    class Wrong(Echo):
        def generate(self, encoded: Any, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
            return outputs

    run = Run(tmp_path, questions(1, 3))
    with pytest.raises(AssertionError, match=r"outputs for 3 prompts|not text"):
        run.go(Wrong())
    assert run.log() == {}, "none of them is an answer, and none a failed sample"


def test_stop_finishes_the_batch_in_hand(tmp_path: Path) -> None:
    run = Run(tmp_path, questions(10, 3))
    model = Echo(lambda prompts: run.stop.set())
    outcome = run.go(model)
    assert (outcome.asked, outcome.interrupted) == (3, True)
    assert set(run.log()) == set(model.batches[0])
    run.stop.clear()
    run.go(Echo())
    assert right(run)


def test_answers_are_in_the_file_after_every_batch(tmp_path: Path) -> None:
    run = Run(tmp_path, questions(4, 4))
    seen: list[int] = []
    run.go(Echo(lambda prompts: seen.append(run.num_lines())))
    asked = [len(batch) for unit in run.units for batch in unit.batches]
    assert seen == [sum(asked[:i]) for i in range(len(asked))]


def test_after_a_failed_batch_each_answer_is_written_as_it_comes(tmp_path: Path) -> None:
    seen: list[int] = []

    def trouble(prompts: Sequence[Prompt]) -> None:
        seen.append(run.num_lines())
        if len(prompts) > 1:
            raise RuntimeError("together they fail")

    run = Run(tmp_path, questions(1, 4), prompt_batch=4)
    run.go(Echo(trouble))
    assert seen == [0, 0, 1, 2, 3]


def test_signals_are_given_back(tmp_path: Path) -> None:
    import signal

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop = threading.Event()
    with finish_batch_on_interrupt(stop):
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
