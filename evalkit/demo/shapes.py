"""The outlines of the world's shapes, rasterised with integers only, so that every platform gets the same pixels."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Mask: TypeAlias = NDArray[np.bool_]

SUB = 4
"""Sub-pixels along a side of a pixel."""

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "hexagon", "heart", "moon")
"""The last two are the novel ones: no training caption and no COCO image of the world has them."""

_POLYGONS: dict[str, tuple[tuple[int, int], ...]] = {
    "square": ((-860, -860), (860, -860), (860, 860), (-860, 860)),
    "triangle": ((0, -1000), (1000, 860), (-1000, 860)),
    "diamond": ((0, -1000), (780, 0), (0, 1000), (-780, 0)),
    "hexagon": ((1000, 0), (500, 866), (-500, 866), (-1000, 0), (-500, -866), (500, -866)),
    "cross": (
        (-320, -960),
        (320, -960),
        (320, -320),
        (960, -320),
        (960, 320),
        (320, 320),
        (320, 960),
        (-320, 960),
        (-320, 320),
        (-960, 320),
        (-960, -320),
        (-320, -320),
    ),
    "star": (
        (0, -1000),
        (247, -340),
        (951, -309),
        (399, 130),
        (588, 809),
        (0, 420),
        (-588, 809),
        (-399, 130),
        (-951, -309),
        (-247, -340),
    ),
    "heart": ((-930, -120), (930, -120), (0, 960)),
}


def _inside(polygon: tuple[tuple[int, int], ...], x: NDArray[np.int64], y: NDArray[np.int64], scale: int) -> Mask:
    """Return the even-odd rule for points in units of 1/(1000 * scale) of the radius."""
    inside = np.zeros(x.shape, dtype=bool)
    for (x1, y1), (x2, y2) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        if y1 == y2:
            continue
        (xa, ya), (xb, yb) = ((x1, y1), (x2, y2)) if y1 < y2 else ((x2, y2), (x1, y1))
        spans = (ya * scale <= y) & (y < yb * scale)
        # x < xa + (y - ya) (xb - xa) / (yb - ya), without the division
        left = (x - xa * scale) * (yb - ya) < (y - ya * scale) * (xb - xa)
        inside ^= spans & left
    return inside


def _disc(x: NDArray[np.int64], y: NDArray[np.int64], cx: int, cy: int, radius: int, scale: int) -> Mask:
    return (x - cx * scale) ** 2 + (y - cy * scale) ** 2 <= (radius * scale) ** 2


@lru_cache(maxsize=256)
def template(shape: str, radius: int) -> Mask:
    """Return the shape as a square mask of sub-pixels, `2 * radius` a side.

    Args:
        shape: One of `SHAPES`.
        radius: Half the side, in sub-pixels.

    >>> template("square", 10).sum(), template("square", 10)[10, 10]
    (np.int64(324), np.True_)
    """
    side = 2 * radius
    axis = (2 * np.arange(side, dtype=np.int64) + 1 - side) * 1000  # centres of the sub-pixels; scale = side
    x, y = np.meshgrid(axis, axis)
    if shape == "circle":
        mask = _disc(x, y, 0, 0, 960, side)
    elif shape == "ring":
        mask = _disc(x, y, 0, 0, 980, side) & ~_disc(x, y, 0, 0, 540, side)
    elif shape == "moon":
        mask = _disc(x, y, 0, 0, 980, side) & ~_disc(x, y, 520, -120, 800, side)
    elif shape == "heart":
        lobes = _disc(x, y, -480, -340, 510, side) | _disc(x, y, 480, -340, 510, side)
        mask = _inside(_POLYGONS["heart"], x, y, side) | lobes
    else:
        mask = _inside(_POLYGONS[shape], x, y, side)
    mask.setflags(write=False)
    return mask
