"""The option a model finds likeliest: what a `choose` task asks, instead of text that must be understood afterwards.

The template says how. Without {option}, each option is read as what a language model would go on with after the prompt,
and the one with the largest log-probability is the answer. With {option}, as in "a photo of a {option}.", each option
makes a text, and the one nearest to the image is the answer: zero-shot classification (Radford et al., 2021, 3.1.4).
Several templates stand below each other, a line each; their embeddings are averaged, as there.

Shapes: I images, Q vectors of an image, T options, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evalkit.errors import SampleError
from evalkit.types import Encoded, Prompt


class Chooser:
    """Chooses with one model; the texts of the options asked last are kept, as most classifiers ask the same ones."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._asked: tuple[str, tuple[str, ...]] | None = None
        self._texts_TD: Any = None

    def choose(
        self, encoded: Encoded, prompts: Sequence[Prompt], options: Sequence[tuple[str, ...]], *, match: bool
    ) -> list[str]:
        """Return the best option of each prompt, the first of equal ones.

        Args:
            encoded: The images.
            prompts: What is asked; with `match` the templates, {option} still in them.
            options: Those of each prompt.
            match: Compare texts with images ("itc") rather than ask for likelihoods ("loglikelihood").

        Raises:
            SampleError: A prompt has no options, or the model gives one of them no number.
        """
        for prompt, each in zip(prompts, options, strict=True):
            if not each:
                raise SampleError(f"sample {prompt.sample_id} has no options to choose from")
        if match:
            scores = [self._similarities(encoded, prompt, each) for prompt, each in zip(prompts, options, strict=True)]
        else:
            scores = self._model.loglikelihood(encoded, prompts, options)
        return [_best(*one) for one in zip(prompts, options, scores, strict=True)]

    def _similarities(self, encoded: Encoded, prompt: Prompt, options: tuple[str, ...]) -> list[float]:
        import numpy as np

        if len(prompt.rows) != 1:
            raise SampleError(
                f"sample {prompt.sample_id} refers to {len(prompt.rows)} images, and options are compared with one"
            )
        if self._asked != (prompt.text, options):
            templates = prompt.text.splitlines()
            if not all("{option}" in template for template in templates):
                raise SampleError(
                    f"the prompt of sample {prompt.sample_id} breaks a line, and each line of a prompt with {{option}} "
                    "is a template of its own; reword the prompt"
                )
            texts = [template.replace("{option}", option) for template in templates for option in options]
            vectors = np.asarray(self._model.itc_texts(texts), dtype=np.float32)
            mean_TD = vectors.reshape(len(templates), len(options), -1).mean(axis=0)
            self._texts_TD = mean_TD / np.linalg.norm(mean_TD, axis=-1, keepdims=True)
            self._asked = (prompt.text, options)
        [image_QD] = self._model.itc_images(encoded.select(prompt.rows))
        similarities: list[float] = (image_QD @ self._texts_TD.T).max(axis=0).tolist()
        return similarities


def _best(prompt: Prompt, options: Sequence[str], scores: Sequence[float]) -> str:
    assert len(scores) == len(options), f"the model scored {len(scores)} of {len(options)} options"
    for option, score in zip(options, scores, strict=True):
        if score != score:
            raise SampleError(f"the model gives option {option!r} of sample {prompt.sample_id} no number (NaN)")
    return max(zip(options, scores, strict=True), key=lambda pair: pair[1])[0]
