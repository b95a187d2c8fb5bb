"""A deterministic stand-in: the same question about the same pixels always gets the same words. No torch.

    python -m evalkit model=fake task=vqav2 limit=10

It runs every task through the whole pipeline in seconds, and fails where a test tells it to.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..types import Capability, Decoding, Encoded, Json, Prompt, Task
from .abilities import shortfall
from .generation import cut_at
from .pixels import to_rgb
from .rows import Rows, own

if TYPE_CHECKING:
    from PIL.Image import Image

_WORDS = (
    "yes",
    "no",
    "1",
    "2",
    "3",
    "red",
    "blue",
    "green",
    "white",
    "left",
    "right",
    "man",
    "woman",
    "dog",
    "cat",
    "a",
)

_SAMPLING = ("temperature", "top_p", "top_k", "seed")
_LENGTH = ("max_new_tokens", "min_new_tokens", "stop")


@dataclass(frozen=True, slots=True)
class _Picture:
    digest: str


class Fake:
    """A model without weights whose answers depend on the prompt, the pixels and the decoding, and nothing else.

    Args:
        seed: Another number is another model.
        seconds_per_image: Time that `encode` spends on an image.
        fail_on: Sample ids, or words in a prompt, at which `generate` and `loglikelihood` raise a RuntimeError.
    """

    capabilities: frozenset[Capability] = frozenset({"generate", "ground", "rank", "loglikelihood", "itc", "itm"})
    box_extract = "box_999"

    def __init__(self, *, seed: int = 0, seconds_per_image: float = 0.0, fail_on: Sequence[str] = ()) -> None:
        self._seed = seed
        self._seconds = seconds_per_image
        self._fail_on = tuple(str(word) for word in fail_on)
        self._grounds = False

    def refuses(self, task: Task) -> str | None:
        """Return None: the fake does everything."""
        return shortfall(self.capabilities, task)

    def identity(self, task: Task) -> Mapping[str, Json]:
        """Return the seed; the image size has no meaning here, pixels are hashed as they are."""
        return {"adapter": "fake", "seed": self._seed}

    def files(self, task: Task) -> Mapping[str, Path]:
        """Return nothing: there are no weights."""
        return {}

    def prepare(self, task: Task) -> None:
        """Remember whether boxes are asked for."""
        self._grounds = task.kind == "ground"

    def preprocess(self, image: Image) -> _Picture:
        """Return the digest of the pixels."""
        rgb = to_rgb(image)
        return _Picture(hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).hexdigest())

    def encode(self, inputs: Sequence[_Picture]) -> Encoded:
        """Return the digests, after `seconds_per_image` each."""
        time.sleep(self._seconds * len(inputs))
        return Rows(tuple(inputs))

    def generate(self, encoded: Encoded, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        """Return words (or a box on the 0..999 grid), a token being a word."""
        pictures = own(encoded, _Picture)
        return [self._answer(pictures, prompt, decoding) for prompt in prompts]

    def rank(self, encoded: Encoded, prompts: Sequence[Prompt], candidates: Sequence[str], keep: int) -> list[str]:
        """Return one of the candidates for each prompt."""
        pictures = own(encoded, _Picture)
        return [candidates[self._number(pictures, prompt, "rank") % len(candidates)] for prompt in prompts]

    def loglikelihood(
        self, encoded: Encoded, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return a number in (-10, 0] for each option."""
        pictures = own(encoded, _Picture)
        for prompt in prompts:
            self._fail_if_told(prompt)
        return [
            [-(self._number(pictures, prompt, f"option {option}") % 10**6) / 10**5 for option in each]
            for prompt, each in zip(prompts, options, strict=True)
        ]

    def itc_images(self, encoded: Encoded) -> Json:
        """Return unit vectors (I, 1, 32) drawn from the pixels."""
        return self._vectors([picture.digest for picture in own(encoded, _Picture).values])[:, None, :]

    def itc_texts(self, texts: Sequence[str]) -> Json:
        """Return unit vectors (T, 32) drawn from the texts."""
        return self._vectors(texts)

    def itm(self, encoded: Encoded, texts: Sequence[str]) -> list[float]:
        """Return a number in [0, 1) for each pair."""
        pairs = zip(own(encoded, _Picture).values, texts, strict=True)
        return [self._hash(picture.digest, text) % 10**6 / 10**6 for picture, text in pairs]

    def _answer(self, pictures: Rows[_Picture], prompt: Prompt, decoding: Decoding) -> str:
        self._fail_if_told(prompt)
        number = self._number(pictures, prompt, _settings(decoding, prompt.sample_id))
        if self._grounds:
            x1, y1, x2, y2 = (number // 1000**power % 1000 for power in range(4))
            text = f"({min(x1, x2)},{min(y1, y2)}),({max(x1, x2)},{max(y1, y2)})</box>"
            return cut_at(text, decoding.stop)
        length = min(max(1 + number % 3, decoding.min_new_tokens), decoding.max_new_tokens)
        words = (_WORDS[self._hash(str(number), str(place)) % len(_WORDS)] for place in range(length))
        return cut_at(" ".join(words), decoding.stop)

    def _fail_if_told(self, prompt: Prompt) -> None:
        for word in self._fail_on:
            if word == prompt.sample_id or word in prompt.text:
                raise RuntimeError(f"fake: told to fail on {word!r} (sample {prompt.sample_id})")

    def _number(self, pictures: Rows[_Picture], prompt: Prompt, settings: str) -> int:
        return self._hash(prompt.text, *(pictures[row].digest for row in prompt.rows), settings)

    def _hash(self, *parts: str) -> int:
        joined = "\0".join((str(self._seed), *parts))
        return int.from_bytes(hashlib.sha256(joined.encode()).digest()[:16], "big")

    def _vectors(self, texts: Sequence[str]) -> Json:
        import numpy as np

        rows = [np.random.default_rng(self._hash(text)).standard_normal(32) for text in texts]
        vectors_TD = np.array(rows, dtype=np.float32).reshape(len(texts), 32)
        return vectors_TD / np.linalg.norm(vectors_TD, axis=-1, keepdims=True)


def _settings(decoding: Decoding, sample_id: str) -> str:
    """Return the decoding as it enters the hash: sampling settings (with the sample id) only when it samples."""
    values = {key: value for key, value in asdict(decoding).items() if key not in _LENGTH}
    if decoding.temperature == 0:
        return str({key: value for key, value in values.items() if key not in _SAMPLING})
    return str({**values, "sample_id": sample_id})
