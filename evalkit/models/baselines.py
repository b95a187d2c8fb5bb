"""The bounds of a benchmark: `majority` never looks, `oracle` is told the references.

    python -m evalkit model=oracle task=[vqav2,refcoco,retrieval] data=demo

Both answer through the task's own `perfect` and `majority`, so what they score says what the scoring can reach.
Decoding has nothing to act on here; asking for ranked candidates is refused.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import ConfigError, ImageError, UnsupportedError
from ..types import Capability, Dataset, Decoding, Encoded, Json, Prompt, Sample, Task
from .abilities import shortfall
from .pixels import to_rgb
from .rows import Rows, own

if TYPE_CHECKING:
    from PIL.Image import Image

_T = TypeVar("_T", str, int)

_DIMENSIONS = 1024
"""Random directions of this many dimensions have cosines of 0.03 around 0: far from the oracle's 1 for a match."""


_KEPT_WORDS = 40
"""LAVIS keeps 50 words of a caption, counting marks between spaces as words."""

_CAN: frozenset[Capability] = frozenset({"generate", "loglikelihood", "ground", "itc"})


@dataclass(frozen=True, slots=True)
class _Guess:
    """What `majority` says about a task."""

    output: str
    place: int = 0
    """Among options without that output, the place at which the right one stands most often."""
    texts: frozenset[str] = frozenset()
    """The options it takes, as the texts that are compared with an image."""

    def among(self, options: Sequence[str]) -> str:
        """Return the option it takes: its output, or the one at its place."""
        if self.output in options:
            return self.output
        return options[self.place if self.place < len(options) else 0]


class Majority:
    """Gives the one output that scores best without looking; for retrieval, the same similarity to every pair.

    Where its output is none of a sample's options it takes a place ("always the second"). Counting each option's own
    text would give the answer away: the right text of a sample stands among the answers at least once, for itself.
    """

    capabilities = _CAN

    def __init__(self) -> None:
        self._guesses: dict[str, _Guess] = {}
        self._guess: _Guess | None = None

    def refuses(self, task: Task) -> str | None:
        """Return why not: the task does not say what a right output is."""
        if task.kind != "retrieve" and task.perfect is None and task.majority is None:
            return f"{task.name} declares neither `perfect` nor `majority`, so there is no most frequent output"
        return _reworded(task) or shortfall(self.capabilities, task)

    def identity(self, task: Task) -> Mapping[str, Json]:
        """Return the name: the references decide the rest."""
        return {"adapter": "majority"}

    def files(self, task: Task) -> Mapping[str, Path]:
        """Return nothing: there are no weights."""
        return {}

    def study(self, task: Task, dataset: Dataset) -> None:
        """Find the output; ties go to the output that sorts first, and to the first place.

        Raises:
            UnsupportedError: The split has no references.
            ConfigError: A perfect output is none of the options.
        """
        if task.kind == "retrieve":
            return
        known = _with_references(task, dataset)
        if task.majority is not None:
            output = task.majority(known)
        else:
            output = _most_frequent(_perfect(task, sample) for sample in known)
        guess = _Guess(output)
        if task.kind == "choose" and task.perfect is not None:
            others = [sample for sample in known if output not in sample.options]
            places = [sample.options.index(_perfect(task, sample)) for sample in others]
            guess = _Guess(output, _most_frequent(places) if places else 0)
        if task.matches:
            asked = [sample for sample in dataset.samples if sample.options]
            pairs = {(_template(task, sample), guess.among(sample.options)) for sample in asked}
            guess = replace(guess, texts=frozenset(text for pair in pairs for text in _texts(*pair)))
        self._guesses[task.name] = guess

    def prepare(self, task: Task) -> None:
        """Take the output found for this task."""
        self._guess = self._guesses.get(task.name)

    def preprocess(self, image: Image) -> None:
        """Return nothing: it does not look."""

    def encode(self, inputs: Sequence[None]) -> Encoded:
        """Return a row per image."""
        return Rows(tuple(inputs))

    def generate(self, encoded: Encoded, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        """Return the same output for each prompt."""
        assert self._guess is not None, "study() and prepare() come before generate()"
        return [self._guess.output] * len(prompts)

    def loglikelihood(
        self, encoded: Encoded, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return 0 for the option it takes, -1 for others."""
        assert self._guess is not None, "study() and prepare() come before loglikelihood()"
        return [_only(self._guess.among(each), each) for each in options]

    def itc_images(self, encoded: Encoded) -> Json:
        """Return the same direction (I, 1, 2) for each image."""
        import numpy as np

        return np.eye(2, dtype=np.float32)[[0] * len(encoded), None]

    def itc_texts(self, texts: Sequence[str]) -> Json:
        """Return that direction (T, 2) for each text; where it chooses, for those of the options it takes."""
        import numpy as np

        guess = self._guess
        return np.eye(2, dtype=np.float32)[[0 if guess is None or text in guess.texts else 1 for text in texts]]


class Oracle:
    """Gives the perfect output of each sample; for retrieval, knows which text was written for which pixels.

    A caption that was written for several images matches them all alike: from its text alone nobody could do better.
    So does the text of an option that is compared with images.
    """

    capabilities = _CAN

    def __init__(self) -> None:
        self._outputs: dict[str, dict[str, str]] = {}
        self._current: dict[str, str] = {}
        self._images: dict[str, tuple[str, ...]] = {}
        self._texts: dict[str, tuple[str, ...]] = {}

    def refuses(self, task: Task) -> str | None:
        """Return why not: the task does not say what a right output is."""
        if task.kind != "retrieve" and task.perfect is None:
            return f"{task.name} declares no `perfect` output"
        return _reworded(task) or shortfall(self.capabilities, task)

    def identity(self, task: Task) -> Mapping[str, Json]:
        """Return the name: the references decide the rest."""
        return {"adapter": "oracle"}

    def files(self, task: Task) -> Mapping[str, Path]:
        """Return nothing: there are no weights."""
        return {}

    def study(self, task: Task, dataset: Dataset) -> None:
        """Learn every answer. Where texts are compared it opens each image once, to know it again by its pixels.

        Raises:
            UnsupportedError: The split has no references.
            ConfigError: A perfect output is none of the options.
        """
        if task.kind == "retrieve":
            self._study_pairs(dataset)
            return
        known = _with_references(task, dataset)
        self._outputs[task.name] = {sample.id: _perfect(task, sample) for sample in known}
        if task.matches:
            self._study_options(task, dataset, known)

    def prepare(self, task: Task) -> None:
        """Take the answers of this task."""
        self._current = self._outputs.get(task.name, {})

    def preprocess(self, image: Image) -> str:
        """Return the digest of the pixels."""
        return _digest(image)

    def encode(self, inputs: Sequence[str]) -> Encoded:
        """Return a row per image."""
        return Rows(tuple(inputs))

    def generate(self, encoded: Encoded, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        """Return the perfect output of each sample."""
        return [self._current[prompt.sample_id] for prompt in prompts]

    def loglikelihood(
        self, encoded: Encoded, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return 0 for the right option, -1 for others."""
        return [_only(self._current[prompt.sample_id], each) for prompt, each in zip(prompts, options, strict=True)]

    def itc_images(self, encoded: Encoded) -> Json:
        """Return a direction (I, 1, D) per image; images of equal pixels share one."""
        return _directions([self._images.get(digest, ()) for digest in own(encoded, str).values])[:, None, :]

    def itc_texts(self, texts: Sequence[str]) -> Json:
        """Return the sum (T, D), normalised, of the directions of the images a text was written for."""
        return _directions([self._texts.get(text) or self._texts.get(_words(text), ()) for text in texts])

    def _study_pairs(self, dataset: Dataset) -> None:
        images = ((digest, sample.id) for sample, digest in _looked_at(dataset, dataset.samples))
        texts = ((_words(text.text), image_id) for text in dataset.texts for image_id in text.image_ids)
        self._images, self._texts = _gathered(images), _gathered(texts)

    def _study_options(self, task: Task, dataset: Dataset, known: Sequence[Sample]) -> None:
        """Give each option of a template a direction, and an image that of its right one."""
        right = self._outputs[task.name]
        pairs = {(_template(task, sample), sample.options) for sample in known}
        each = {(template, option) for template, options in pairs for option in options}
        images = (
            (digest, "\0".join((_template(task, sample), right[sample.id])))
            for sample, digest in _looked_at(dataset, known)
        )
        self._images = _gathered(images)
        self._texts = _gathered((text, "\0".join(pair)) for pair in each for text in _texts(*pair))


def _perfect(task: Task, sample: Sample) -> str:
    assert task.perfect is not None, "refuses() was not asked"
    output = task.perfect(sample)
    if task.kind == "choose" and output not in sample.options:
        raise ConfigError(
            f"{task.name}: the perfect output {output!r} of sample {sample.id} is none of its {len(sample.options)} "
            "options; `perfect` returns one of Sample.options as it stands there"
        )
    return output


def _reworded(task: Task) -> str | None:
    """Return why texts of options would not be known again, or None."""
    if task.matches and task.question_filter is not None:
        return (
            f"question_filter={task.question_filter} changes the texts that are compared with images, which a baseline "
            "knows as the template has them; say question_filter=none"
        )
    return None


def _template(task: Task, sample: Sample) -> str:
    """Return the sample's prompt, with {option} still in it."""
    return task.template.format(**{**sample.fields, "option": "{option}"})


def _texts(template: str, option: str) -> list[str]:
    """Return the texts of an option, as `choice.py` makes them."""
    return [line.replace("{option}", option) for line in template.splitlines()]


def _only(chosen: str, options: Sequence[str]) -> list[float]:
    return [0.0 if option == chosen else -1.0 for option in options]


def _most_frequent(values: Iterable[_T]) -> _T:
    """Return the most frequent value; of equally frequent ones the first in order."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def _gathered(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = {}
    for key, value in pairs:
        found.setdefault(key, set()).add(value)
    return {key: tuple(sorted(values)) for key, values in found.items()}


def _looked_at(dataset: Dataset, samples: Iterable[Sample]) -> Iterator[tuple[Sample, str]]:
    """Yield samples with the digest of their image; one that cannot be opened is named by the run, in the log."""
    for sample in samples:
        try:
            image = dataset.images.open(sample.image_ids[0])
        except ImageError:
            continue
        yield sample, _digest(image)


def _with_references(task: Task, dataset: Dataset) -> list[Sample]:
    known = [sample for sample in dataset.samples if sample.reference is not None]
    if not known:
        raise UnsupportedError(
            f"{task.name} has no references here (a blind test split), so there is nothing a baseline could know; "
            "choose a split with references, or model=fake"
        )
    return known


def _words(text: str) -> str:
    """Return what stays of a caption whatever cleaning the task asks for."""
    return " ".join(re.findall(r"\w+", text.lower())[:_KEPT_WORDS])


def _digest(image: Image) -> str:
    rgb = to_rgb(image)
    return hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).hexdigest()


def _directions(owners: Sequence[Sequence[str]]) -> Json:
    """Return unit vectors (N, D): the normalised sum of one random direction per image id; zeros for nobody's."""
    import numpy as np

    sums_ND = np.zeros((len(owners), _DIMENSIONS), dtype=np.float32)
    for row, image_ids in enumerate(owners):
        for image_id in image_ids:
            rng = np.random.default_rng(zlib.crc32(image_id.encode()))
            sums_ND[row] += rng.standard_normal(_DIMENSIONS, dtype=np.float32)
    norms_N1 = np.linalg.norm(sums_ND, axis=-1, keepdims=True)
    return sums_ND / np.where(norms_N1 == 0, 1, norms_N1)
