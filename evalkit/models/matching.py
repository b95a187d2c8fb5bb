"""What BLIP, BLIP-2 and CLIP share when they compare images with texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..types import Json

if TYPE_CHECKING:
    import torch

MAX_CAPTION_TOKENS = 35
"""BLIP and BLIP-2 cut the texts of a retrieval task there (LAVIS blip2.py, BLIP train_retrieval.py)."""


def read_captions(tokenizer: Any, texts: Sequence[str], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask (T, L) of captions, padded on the right, where no class token is in the way."""
    encoded = tokenizer(
        list(texts),
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=MAX_CAPTION_TOKENS,
        return_tensors="pt",
    ).to(device)
    return encoded["input_ids"], encoded["attention_mask"]


def unit(vectors: torch.Tensor) -> Json:
    """Return the vectors with length 1 along the last axis, as float32 numpy."""
    import torch

    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
