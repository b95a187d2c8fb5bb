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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ImageError, UnsupportedError
from ..types import Capability, Dataset, Decoding, Encoded, Json, Prompt, Sample, Task
from .abilities import shortfall
from .pixels import to_rgb
from .rows import Rows, own

if TYPE_CHECKING:
    from PIL.Image import Image

_DIMENSIONS = 1024
"""Random directions of this many dimensions have cosines of 0.03 around 0: far from the oracle's 1 for a match."""


_KEPT_WORDS = 40
"""LAVIS keeps 50 words of a caption, counting marks between spaces as words."""


class Majority:
    """Gives the one output that scores best without looking; for retrieval, the same similarity to every pair."""

    capabilities: frozenset[Capability] = frozenset({"generate", "ground", "itc"})

    def __init__(self) -> None:
        self._outputs: dict[str, str] = {}
        self._output: str | None = None

    def refuses(self, task: Task) -> str | None:
        """Return why not: the task does not say what a right output is."""
        if task.kind != "retrieve" and task.perfect is None and task.majority is None:
            return f"{task.name} declares neither `perfect` nor `majority`, so there is no most frequent output"
        return shortfall(self.capabilities, task)

    def identity(self, task: Task) -> Mapping[str, Json]:
        """Return the name: the references decide the rest."""
        return {"adapter": "majority"}

    def files(self, task: Task) -> Mapping[str, Path]:
        """Return nothing: there are no weights."""
        return {}

    def study(self, task: Task, dataset: Dataset) -> None:
        """Find the output; ties go to the output that sorts first.

        Raises:
            UnsupportedError: The split has no references.
        """
        if task.kind == "retrieve":
            return
        known = _with_references(task, dataset)
        if task.majority is not None:
            self._outputs[task.name] = task.majority(known)
        else:
            assert task.perfect is not None, "refuses() was not asked"
            counts = Counter(task.perfect(sample) for sample in known)
            self._outputs[task.name] = min(counts, key=lambda output: (-counts[output], output))

    def prepare(self, task: Task) -> None:
        """Take the output found for this task."""
        self._output = self._outputs.get(task.name)

    def preprocess(self, image: Image) -> None:
        """Return nothing: it does not look."""

    def encode(self, inputs: Sequence[None]) -> Encoded:
        """Return a row per image."""
        return Rows(tuple(inputs))

    def generate(self, encoded: Encoded, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        """Return the same output for each prompt."""
        assert self._output is not None, "study() and prepare() come before generate()"
        return [self._output] * len(prompts)

    def itc_images(self, encoded: Encoded) -> Json:
        """Return the same direction (I, 1, 1) for each image."""
        import numpy as np

        return np.ones((len(encoded), 1, 1), dtype=np.float32)

    def itc_texts(self, texts: Sequence[str]) -> Json:
        """Return the same direction (T, 1) for each text."""
        import numpy as np

        return np.ones((len(texts), 1), dtype=np.float32)


class Oracle:
    """Gives the perfect output of each sample; for retrieval, knows which text was written for which pixels.

    A caption that was written for several images matches them all alike: from its text alone nobody could do better.
    """

    capabilities: frozenset[Capability] = frozenset({"generate", "ground", "itc"})

    def __init__(self) -> None:
        self._outputs: dict[str, dict[str, str]] = {}
        self._current: dict[str, str] = {}
        self._images: dict[str, tuple[str, ...]] = {}
        self._texts: dict[str, tuple[str, ...]] = {}

    def refuses(self, task: Task) -> str | None:
        """Return why not: the task does not say what a right output is."""
        if task.kind != "retrieve" and task.perfect is None:
            return f"{task.name} declares no `perfect` output"
        return shortfall(self.capabilities, task)

    def identity(self, task: Task) -> Mapping[str, Json]:
        """Return the name: the references decide the rest."""
        return {"adapter": "oracle"}

    def files(self, task: Task) -> Mapping[str, Path]:
        """Return nothing: there are no weights."""
        return {}

    def study(self, task: Task, dataset: Dataset) -> None:
        """Learn every answer. For retrieval it opens each image once, to know it again by its pixels.

        Raises:
            UnsupportedError: The split has no references.
        """
        if task.kind == "retrieve":
            self._study_pairs(dataset)
            return
        assert task.perfect is not None, "refuses() was not asked"
        self._outputs[task.name] = {sample.id: task.perfect(sample) for sample in _with_references(task, dataset)}

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

    def itc_images(self, encoded: Encoded) -> Json:
        """Return a direction (I, 1, D) per image; images of equal pixels share one."""
        return _directions([self._images.get(digest, ()) for digest in own(encoded, str).values])[:, None, :]

    def itc_texts(self, texts: Sequence[str]) -> Json:
        """Return the sum (T, D), normalised, of the directions of the images a text was written for."""
        return _directions([self._texts.get(_words(text), ()) for text in texts])

    def _study_pairs(self, dataset: Dataset) -> None:
        images: dict[str, set[str]] = {}
        for sample in dataset.samples:
            try:
                image = dataset.images.open(sample.image_ids[0])
            except ImageError:
                continue  # the run opens it once more, and names it in the log
            images.setdefault(_digest(image), set()).add(sample.id)
        texts: dict[str, set[str]] = {}
        for text in dataset.texts:
            texts.setdefault(_words(text.text), set()).update(text.image_ids)
        self._images = {digest: tuple(sorted(ids)) for digest, ids in images.items()}
        self._texts = {text: tuple(sorted(ids)) for text, ids in texts.items()}


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
