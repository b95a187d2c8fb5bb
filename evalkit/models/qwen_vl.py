"""Qwen-VL and Qwen-VL-Chat, first generation (Bai et al., 2023, arXiv 2308.12966).

    python -m evalkit model=qwen-vl model.trust_remote_code=true model.checkpoint=DIR task=refcoco

Its code is part of its checkpoint, so it runs only with `trust_remote_code=true`; its published weights are pickles,
which are refused (the message says how to convert them). This adapter was written against that code's interface and is
tested with a stand-in that has it; the real checkpoint was not run.

The model reads an image from the text, `<img>name</img>`, and asks its `transformer.visual.encode` for the pictures of
these names. Here names are rows, and what was encoded once answers for them.

Shapes: I images, N queries, H hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SampleError
from ..types import Capability, Decoding, Encoded, Json, Prompt, Task
from .abilities import sampling_with_beams, shortfall
from .checkpoints import Checkpoint, Loading
from .generation import check_length, forget_decoding, generate_texts, hide_padding, pad, position_limit
from .likelihood import after, continued
from .pixels import to_rgb
from .rows import Rows, own

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
"""visual.py of the checkpoint: CLIP's."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """The features (N, H) of one image."""

    features: torch.Tensor


class QwenVl:
    """One checkpoint of Qwen-VL.

    Boxes are `<box>(x1,y1),(x2,y2)</box>` on a grid of 0..999.

    Args:
        checkpoint: Folder or hub name, with its code and safetensors.
        revision: Of a hub name.
        **loading: See `checkpoints.Loading`; `trust_remote_code` must be true.
    """

    capabilities: frozenset[Capability] = frozenset({"generate", "ground", "loglikelihood"})
    box_extract = "box_999"

    def __init__(self, *, checkpoint: str, revision: str | None = None, **loading: Any) -> None:
        self._loading = Loading.of(loading)
        self._checkpoint = Checkpoint(checkpoint, revision, code=True)
        self._model: Any = None
        self._tokenizer: Any = None

    def refuses(self, task: Task) -> str | None:
        """Return why not: its code is not trusted, or it cannot do the task."""
        if not self._loading.trust_remote_code:
            return (
                "Qwen-VL's code comes with its checkpoint and would run here; read it, then say "
                "model.trust_remote_code=true"
            )
        if task.image_size is not None:
            return f"{task.name} asks for image_size={task.image_size}, and Qwen-VL reads one size only; leave it unset"
        return shortfall(self.capabilities, task) or sampling_with_beams(task.decoding)

    def identity(self, task: Task) -> Mapping[str, Json]:
        """Return adapter and loading; the code is among the hashed files."""
        return {"adapter": "qwen_vl", **self._loading.identity()}

    def files(self, task: Task) -> Mapping[str, Path]:
        """Return the files of the checkpoint, its code among them."""
        return self._checkpoint.files

    def prepare(self, task: Task) -> None:
        """Load the weights, once."""
        if self._model is not None:
            return
        self._checkpoint.expect({"qwen"})
        self._tokenizer = self._loading.load_tokenizer(self._checkpoint, "left")
        self._model = self._loading.load(self._checkpoint, "AutoModelForCausalLM")
        forget_decoding(self._model, end=self._tokenizer.eod_id)

    def preprocess(self, image: Image) -> torch.Tensor:
        """Return pixels (3, S, S): squashed to a square, bicubic."""
        import numpy as np
        import torch
        from PIL import Image as PillowImage

        side = self._model.config.visual["image_size"]
        small = to_rgb(image).resize((side, side), PillowImage.Resampling.BICUBIC)
        pixels_SS3 = np.asarray(small, dtype=np.float32) / 255
        normal_SS3 = (pixels_SS3 - np.array(_MEAN, dtype=np.float32)) / np.array(_STD, dtype=np.float32)
        return torch.from_numpy(normal_SS3.transpose(2, 0, 1).copy())

    def encode(self, inputs: Sequence[torch.Tensor]) -> Encoded:
        """Return the features of each image."""
        import torch

        with torch.inference_mode():
            pixels_I3SS = torch.stack(list(inputs)).to(self._model.device, self._model.dtype)
            features_INH = self._model.transformer.visual(pixels_I3SS)
        return Rows(tuple(_Seen(features_NH) for features_NH in features_INH))

    def generate(self, encoded: Encoded, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        """Return the continuation of each prompt, the images before the text.

        Raises:
            SampleError: A prompt holds an image tag, or is longer than the model.
        """
        seen = own(encoded, _Seen)
        rows = self._tokenizer([_tagged(prompt) for prompt in prompts])["input_ids"]
        ids_BL, mask_BL = pad(rows, "left", self._model.device)
        check_length(position_limit(self._model.config), ids_BL.shape[1], prompts, decoding)
        # The model looks for images between these two tokens, wherever they are.
        image_end = self._model.config.visual["image_start_id"] + 1
        inputs = {"input_ids": hide_padding(ids_BL, mask_BL, never=image_end), "attention_mask": mask_BL}
        with self._showing(seen):
            return generate_texts(self._model, self._tokenizer, inputs, prompts, decoding)

    def loglikelihood(
        self, encoded: Encoded, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return the log-probability of each option after its images and prompt.

        Raises:
            SampleError: A prompt holds an image tag; an option has no token, or does not fit the model.
        """
        import torch

        found = []
        with self._showing(own(encoded, _Seen)):
            for prompt, each in zip(prompts, options, strict=True):
                split = after(_tagged(prompt, each), prompt, each, lambda texts: self._tokenizer(texts)["input_ids"])
                ids_1L = torch.tensor([split.context], device=self._model.device)
                inputs = {"input_ids": ids_1L, "attention_mask": torch.ones_like(ids_1L)}
                found.append(continued(self._model, inputs, prompt, split))
        return found

    @contextlib.contextmanager
    def _showing(self, seen: Rows[_Seen]) -> Iterator[None]:
        """Let the model find encoded images where it would open files."""
        import torch

        def look_up(names: Sequence[str]) -> torch.Tensor:
            return torch.stack([seen[int(name)].features for name in names])

        visual = self._model.transformer.visual
        visual.encode = look_up
        try:
            yield
        finally:
            del visual.encode


def _tagged(prompt: Prompt, options: Sequence[str] = ()) -> str:
    """Return the text with its images in the model's own syntax, which neither it nor its options may hold."""
    if any(tag in text for text in (prompt.text, *options) for tag in ("<img>", "</img>")):
        raise SampleError(
            f"the prompt of sample {prompt.sample_id}, or an option, holds <img> or </img>, by which Qwen-VL means "
            "an image; reword it"
        )
    return "".join(f"<img>{row}</img>" for row in prompt.rows) + prompt.text
