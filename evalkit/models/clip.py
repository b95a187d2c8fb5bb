"""Dual encoders: CLIP (Radford et al., 2021) and SigLIP (Zhai et al., 2023). Cosines only, no re-ranking.

    python -m evalkit model=clip task=retrieval

Images are resized and cropped by the checkpoint's own processor. Texts are cut at the positions of the text encoder;
SigLIP was trained on texts filled up to that length and reads its summary there, so it is always fed full length.

Shapes: I images, T texts, L text tokens, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..types import Capability, Encoded, Json, Task
from .abilities import shortfall
from .checkpoints import Checkpoint, Loading
from .matching import unit
from .pixels import to_rgb
from .rows import Rows, own

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel"}


@dataclass(frozen=True, slots=True)
class _Seen:
    """The embedding (D,) of one image."""

    vector: torch.Tensor


class Clip:
    """One checkpoint of CLIP or SigLIP.

    Args:
        checkpoint: Folder or hub name.
        revision: Of a hub name.
        text_prefix: Words put before every text, such as "a photo of ".
        text_batch: Texts embedded at once.
        **loading: See `checkpoints.Loading`.
    """

    capabilities: frozenset[Capability] = frozenset({"itc"})

    def __init__(
        self,
        *,
        checkpoint: str,
        revision: str | None = None,
        text_prefix: str = "",
        text_batch: int = 256,
        **loading: Any,
    ) -> None:
        self._loading = Loading.of(loading)
        self._checkpoint = Checkpoint(checkpoint, revision)
        self._text_prefix = text_prefix
        self._text_batch = text_batch
        self._model: Any = None
        self._tokenizer: Any = None
        self._image_processor: Any = None

    def refuses(self, task: Task) -> str | None:
        """Return why not: it only compares, at the image size it was trained with."""
        if task.image_size is not None:
            return (
                f"{task.name} asks for image_size={task.image_size}, and this model reads images at the size of its "
                "own processor; leave image_size unset"
            )
        return shortfall(self.capabilities, task)

    def identity(self, task: Task) -> Mapping[str, Json]:
        """Return adapter, loading and the words before each text."""
        return {"adapter": "clip", **self._loading.identity(), "text_prefix": self._text_prefix}

    def files(self, task: Task) -> Mapping[str, Path]:
        """Return the files of the checkpoint."""
        return self._checkpoint.files

    def prepare(self, task: Task) -> None:
        """Load the weights, once."""
        if self._model is not None:
            return
        self._checkpoint.expect(_CLASSES)
        self._tokenizer = self._loading.load_tokenizer(self._checkpoint, "right")
        self._image_processor = self._loading.load_image_processor(self._checkpoint)
        self._model = self._loading.load(self._checkpoint, _CLASSES[self._checkpoint.config["model_type"]])

    def preprocess(self, image: Image) -> torch.Tensor:
        """Return pixels (3, H, W)."""
        # Without the last argument an image of height 3 is taken for one whose channels come first.
        pixels = self._image_processor(images=[to_rgb(image)], return_tensors="pt", input_data_format="channels_last")
        values: torch.Tensor = pixels["pixel_values"][0]
        return values

    def encode(self, inputs: Sequence[torch.Tensor]) -> Encoded:
        """Return the embedding of each image."""
        import torch

        with torch.inference_mode():
            pixels_I3HW = torch.stack(list(inputs)).to(self._model.device, self._model.dtype)
            vectors_ID = self._model.get_image_features(pixel_values=pixels_I3HW, return_dict=True).pooler_output
        return Rows(tuple(_Seen(vector_D) for vector_D in vectors_ID))

    def itc_images(self, encoded: Encoded) -> Json:
        """Return unit vectors (I, 1, D)."""
        import torch

        return unit(torch.stack([seen.vector for seen in own(encoded, _Seen).values]))[:, None, :]

    def itc_texts(self, texts: Sequence[str]) -> Json:
        """Return unit vectors (T, D)."""
        import numpy as np
        import torch

        vectors = []
        for start in range(0, len(texts), self._text_batch):
            inputs = self._read(texts[start : start + self._text_batch])
            with torch.inference_mode():
                vectors.append(unit(self._model.get_text_features(**inputs, return_dict=True).pooler_output))
        return np.concatenate(vectors)

    def _read(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        full = self._checkpoint.config["model_type"] == "siglip"
        encoded = self._tokenizer(
            [self._text_prefix + text for text in texts],
            padding="max_length" if full else True,
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self._model.device)
        # SigLIP attends to its padding, as it was trained.
        return {"input_ids": encoded["input_ids"]} | ({} if full else {"attention_mask": encoded["attention_mask"]})
