"""Images as every adapter is given them: eight-bit RGB.

Decided once, for all models, as the code behind the published numbers does it (`Image.open(path).convert("RGB")`):
pixels are used as stored, so an EXIF rotation is not applied (COCO's boxes are in stored pixels, too); transparency is
dropped; an animation is its first frame. One thing is added: PIL clips 16-bit samples to 255, which turns them white;
they are scaled to eight bits instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


def to_rgb(image: Image) -> Image:
    """Return the image as eight-bit RGB of the same size.

    >>> from PIL import Image
    >>> to_rgb(Image.new("I;16", (1, 1), 65535)).getpixel((0, 0))
    (255, 255, 255)
    >>> to_rgb(Image.new("RGBA", (1, 1), (10, 20, 30, 0))).getpixel((0, 0))
    (10, 20, 30)
    """
    if image.mode in _DEEP:
        return _to_eight_bits(image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_eight_bits(image: Image) -> Image:
    """Return a deep grey image as mode L: 16-bit files scaled, values that already fit kept."""
    import numpy as np
    from PIL import Image as PillowImage

    grey_HW = np.asarray(image).astype(np.float64)
    # Older Pillow opens a 16-bit PNG in mode "I" (32 bits); there, only the values tell the depth.
    sixteen = image.mode.startswith("I;16") or float(grey_HW.max()) > 255
    scaled_HW = grey_HW / 257 if sixteen else grey_HW
    return PillowImage.fromarray(np.clip(np.rint(scaled_HW), 0, 255).astype(np.uint8), mode="L")


def padded(image: Image, colour: Sequence[float]) -> Image:
    """Return the image in the middle of a square of this colour (channels in 0..1), as LLaVA-1.5 reads images.

    >>> from PIL import Image
    >>> [padded(Image.new("RGB", (1, 3)), (1, 0, 0)).getpixel((x, 0)) for x in range(3)]
    [(255, 0, 0), (0, 0, 0), (255, 0, 0)]
    """
    from PIL import Image as PillowImage

    side = max(image.size)
    canvas = PillowImage.new("RGB", (side, side), tuple(int(channel * 255) for channel in colour))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def square(processor: Any, image: Image, size: int | None) -> torch.Tensor:
    """Return pixels (3, S, S) as an image processor makes them, squashed to a square of `size`.

    Args:
        processor: Image processor of a model with square inputs.
        image: Eight-bit RGB.
        size: Pixels a side; None: the processor's own.
    """
    sides = {} if size is None else {"size": {"height": size, "width": size}}
    # Without the last argument an image of height 3 is taken for one whose channels come first.
    pixels = processor(images=[image], return_tensors="pt", input_data_format="channels_last", **sides)
    values: torch.Tensor = pixels["pixel_values"][0]
    return values


def patches(model: Any, pixels: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return what the ViT of a BLIP model sees, (I, N, D); at another size its positions are interpolated.

    Args:
        model: A model with `vision_model`.
        pixels: One (3, S, S) per image.
    """
    import torch

    pixels_I3SS = torch.stack(list(pixels)).to(model.device)
    trained = model.config.vision_config.image_size
    with torch.inference_mode():
        seen: torch.Tensor = model.vision_model(
            pixel_values=pixels_I3SS, interpolate_pos_encoding=pixels_I3SS.shape[-1] != trained, return_dict=True
        ).last_hidden_state
    return seen
