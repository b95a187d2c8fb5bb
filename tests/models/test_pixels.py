"""Odd images reach every model as eight-bit RGB."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from evalkit.models.pixels import square, to_rgb

from . import tiny


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "F"]
)
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (3, 3), (5, 3), (3, 5)])
def test_every_mode_and_shape(mode: str, size: tuple[int, int]) -> None:
    rgb = to_rgb(Image.new(mode, size))
    assert rgb.mode == "RGB"
    assert rgb.size == size
    pixels = square(tiny.square_processor(28), rgb, None)
    assert pixels.shape == (3, 28, 28)
    assert pixels.isfinite().all()


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    assert np.asarray(to_rgb(Image.open(buffer)))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_exif_rotation_is_not_applied() -> None:
    buffer = io.BytesIO()
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(buffer, "JPEG", exif=exif)
    assert to_rgb(Image.open(buffer)).size == (4, 2)


def test_an_animation_is_its_first_frame() -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert to_rgb(Image.open(buffer)).getpixel((0, 0)) == (254, 0, 0) or to_rgb(Image.open(buffer)).getpixel(
        (0, 0)
    ) == (255, 0, 0)


def test_channels_are_not_guessed_from_the_shape() -> None:
    """An image three pixels high looks like one whose three channels come first."""
    picture = tiny.pictures()[0].resize((50, 3))
    expected = np.asarray(picture.resize((28, 28), Image.Resampling.BICUBIC)).transpose(2, 0, 1) / 255
    pixels = square(tiny.square_processor(28), picture, None).numpy()
    mean = np.array(tiny.square_processor(28).image_mean)[:, None, None]
    std = np.array(tiny.square_processor(28).image_std)[:, None, None]
    np.testing.assert_allclose(pixels, (expected - mean) / std, atol=1e-5)
