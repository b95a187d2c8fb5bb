"""A scene's pixels: shapes laid over each other, a sign in Pillow's built-in bitmap font, clutter and noise."""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from evalkit.demo.scenes import SIDE, Scene, Sign, Thing
from evalkit.demo.shapes import SUB, template

PAINT = {
    "red": (210, 40, 40),
    "orange": (245, 140, 25),
    "yellow": (245, 220, 50),
    "green": (45, 155, 60),
    "blue": (45, 85, 215),
    "purple": (135, 50, 165),
    "pink": (250, 140, 185),
    "brown": (125, 75, 35),
    "black": (20, 20, 20),
    "white": (248, 248, 248),
    "gray": (140, 140, 140),
    "tan": (215, 190, 150),
    "navy": (45, 52, 95),
    "teal": (85, 150, 150),
    "lavender": (190, 175, 220),
}
_JITTER = 16


def _tint(rng: random.Random, color: str) -> tuple[int, ...]:
    return tuple(min(255, max(0, value + rng.randint(-_JITTER, _JITTER))) for value in PAINT[color])


@lru_cache(maxsize=4096)
def _coverage(shape: str, radius: int, shift_x: int, shift_y: int) -> NDArray[np.int32]:
    """Return, per pixel, how many of its 16 sub-pixels the shape covers when it starts at this sub-pixel."""
    mask = template(shape, radius)
    side = -(-(2 * radius + SUB) // SUB) * SUB
    canvas = np.zeros((side, side), dtype=np.int32)
    canvas[shift_y : shift_y + 2 * radius, shift_x : shift_x + 2 * radius] = mask
    cover: NDArray[np.int32] = canvas.reshape(side // SUB, SUB, side // SUB, SUB).sum(axis=(1, 3), dtype=np.int32)
    return cover


@lru_cache(maxsize=256)
def _letters(text: str) -> NDArray[np.bool_]:
    """Return the text in Pillow's built-in bitmap font, 6 x 11 pixels a letter."""
    image = Image.new("1", (6 * len(text), 11), 0)
    ImageDraw.Draw(image).text((0, 0), text, fill=1, font=ImageFont.load_default_imagefont())
    return np.asarray(image, dtype=bool)


def _lay(canvas: NDArray[np.int32], owner: NDArray[np.int8], thing: Thing, paint: tuple[int, ...]) -> None:
    left, top = thing.x - thing.radius, thing.y - thing.radius
    cover = _coverage(thing.shape, thing.radius, left % SUB, top % SUB)
    x, y = left // SUB, top // SUB
    height, width = min(cover.shape[0], SIDE - y), min(cover.shape[1], SIDE - x)
    cover = cover[:height, :width]
    full = SUB * SUB
    patch = canvas[y : y + height, x : x + width]
    patch[:] = (patch * (full - cover)[..., None] + np.array(paint) * cover[..., None] + full // 2) // full
    owner[y : y + height, x : x + width][2 * cover >= full] = thing.index


def _clutter(rng: random.Random, canvas: NDArray[np.int32]) -> None:
    """Scratches and specks, never larger than two pixels across, in any colour."""
    for _ in range(rng.randint(0, 3)):
        paint = _tint(rng, rng.choice(tuple(PAINT)))
        x, y, length = rng.randrange(SIDE), rng.randrange(SIDE), rng.randint(6, 24)
        if rng.random() < 0.5:
            canvas[y, x : x + length] = paint
        else:
            canvas[y : y + length, x] = paint
    for _ in range(rng.randint(0, 8)):
        paint = _tint(rng, rng.choice(tuple(PAINT)))
        x, y, side = rng.randrange(SIDE - 1), rng.randrange(SIDE - 1), rng.randint(1, 2)
        canvas[y : y + side, x : x + side] = paint


def _hang(rng: random.Random, canvas: NDArray[np.int32], sign: Sign) -> None:
    x1, y1, x2, y2 = sign.box
    dark = rng.random() < 0.3
    board, ink = ((35, 70, 60), (245, 245, 235)) if dark else ((245, 240, 215), (40, 35, 30))
    canvas[y1:y2, x1:x2] = [value + rng.randint(-10, 10) for value in board]
    canvas[y1 + 2 : y1 + 13, x1 + 2 : x2 - 2][_letters(sign.text)] = ink


def paint(scene: Scene) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Return the pixels (64, 64, 3) and, per pixel, the index of the thing seen there, or -1."""
    rng = random.Random(f"paint {scene.seed}")
    canvas = np.empty((SIDE, SIDE, 3), dtype=np.int32)
    canvas[:] = _tint(rng, scene.background)
    owner = np.full((SIDE, SIDE), -1, dtype=np.int8)
    _clutter(rng, canvas)
    for thing in scene.things:
        _lay(canvas, owner, thing, _tint(rng, thing.color))
    if scene.sign is not None:
        _hang(rng, canvas, scene.sign)
    noise = np.frombuffer(rng.randbytes(SIDE * SIDE * 3), dtype=np.uint8).reshape(canvas.shape)
    canvas += (noise.astype(np.int32) * 25 >> 8) - 12
    return np.clip(canvas, 0, 255).astype(np.uint8), owner


def picture(scene: Scene) -> Image.Image:
    """Return the scene as an RGB image."""
    return Image.fromarray(paint(scene)[0])
