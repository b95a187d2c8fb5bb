"""What is to be seen where: targets that teach the vision tower, per patch, and the Q-Former, per query token.

The tower learns to see before it learns to speak, the Q-Former while it does: the first nine query tokens stand for
the cells of the loose grid that things lie on, the other seven for the letters of the sign. The heads that are taught
this way are thrown away; what stays is that each query token has something to tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from evalkit.demo.draw import paint
from evalkit.demo.network import PATCH, WIDTH
from evalkit.demo.scenes import BACKGROUNDS, COLORS, SIDE, SIZES, Scene
from evalkit.demo.shapes import SHAPES, SUB

_GRID = SIDE // PATCH
CELLS, LETTERS = 9, 7
"""Query tokens that stand for cells and for letters; together all of them."""
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """Pictures (B, 64, 64, 3) and per patch (B, 64, ...) what is there; -100: nothing to learn."""

    pixels: NDArray[np.uint8]
    shape: NDArray[np.int64]
    color: NDArray[np.int64]
    size: NDArray[np.int64]
    box: NDArray[np.float32]
    letters: NDArray[np.int64]
    """The characters over the left and the right half of the patch; 0 is none."""
    background: NDArray[np.int64]
    cell_shape: NDArray[np.int64]
    """Per cell (B, 9) the thing that lies there."""
    cell_color: NDArray[np.int64]
    cell_size: NDArray[np.int64]
    cell_box: NDArray[np.float32]
    """(B, 9, 4), as shares of the side."""
    text: NDArray[np.int64]
    """The sign's characters (B, 7); 0 is none."""


def _owners(owner: NDArray[np.int8], number: int) -> NDArray[np.int64]:
    """Return, per patch, the thing that shows most of itself there (10 of 64 pixels at least), or -1."""
    patches = owner.reshape(_GRID, PATCH, _GRID, PATCH).transpose(0, 2, 1, 3).reshape(_GRID * _GRID, -1)
    counts = np.stack([(patches == index).sum(axis=1) for index in range(number)], axis=1)
    best = counts.argmax(axis=1)
    return np.where(counts.max(axis=1) >= 10, best, -1)


def _letters(scene: Scene) -> NDArray[np.int64]:
    letters = np.zeros((_GRID, _GRID, 2), dtype=np.int64)
    if scene.sign is not None:
        row = (scene.sign.y + 8) // PATCH
        for half in range(2 * _GRID):
            place = (half * PATCH // 2 + PATCH // 4 - scene.sign.x - 2) // 6
            if 0 <= place < len(scene.sign.text):
                letters[row, half // 2, half % 2] = 1 + CHARACTERS.index(scene.sign.text[place])
    return letters.reshape(-1, 2)


def look(scenes: Sequence[Scene]) -> Seen:
    """Draw the scenes and note what each patch shows."""
    columns: dict[str, list[NDArray[np.generic]]] = {name: [] for name in Seen.__slots__}
    y, x = np.divmod(np.arange(_GRID * _GRID), _GRID)
    middle = np.stack([x, y, x, y], axis=1) * PATCH + PATCH // 2
    for scene in scenes:
        pixels, owner = paint(scene)
        owners = _owners(owner, len(scene.things))
        shape = np.array([SHAPES.index(thing.shape) for thing in scene.things] + [-100])
        color = np.array([COLORS.index(thing.color) for thing in scene.things] + [-100])
        size = np.array([SIZES.index(thing.size) for thing in scene.things] + [-100])
        box = np.array([thing.box for thing in scene.things] + [(0, 0, 0, 0)])
        columns["pixels"].append(pixels)
        columns["shape"].append(shape[owners])  # -1 takes the last row: nothing
        columns["color"].append(color[owners])
        columns["size"].append(size[owners])
        columns["box"].append(((box[owners] - middle) / 16).astype(np.float32))
        columns["letters"].append(_letters(scene))
        columns["background"].append(np.array(BACKGROUNDS.index(scene.background)))
        held = np.full(CELLS, -1)
        for thing in scene.things:
            held[3 * (3 * thing.y // (SIDE * SUB)) + 3 * thing.x // (SIDE * SUB)] = thing.index
        columns["cell_shape"].append(shape[held])
        columns["cell_color"].append(color[held])
        columns["cell_size"].append(size[held])
        columns["cell_box"].append((box[held] / SIDE).astype(np.float32))
        said = scene.sign.text if scene.sign else ""
        columns["text"].append(
            np.array([1 + CHARACTERS.index(said[i]) if i < len(said) else 0 for i in range(LETTERS)])
        )
    return Seen(**{name: np.stack(values) for name, values in columns.items()})


class Teacher(nn.Module):
    """A throw-away linear head on the vision tower, and its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = (2, len(SHAPES), len(COLORS), len(SIZES), 4, len(CHARACTERS) + 1, len(CHARACTERS) + 1)
        self.head = nn.Linear(WIDTH, sum(self.parts))
        self.head_global = nn.Linear(WIDTH, len(BACKGROUNDS))

    def forward(self, seen_BND: Tensor, targets: Seen) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and how many patches are seen right (percent, box error in pixels)."""
        there, shape, color, size, box, left, right = self.head(seen_BND[:, 1:]).float().split(self.parts, dim=-1)
        background = self.head_global(seen_BND[:, 0]).float()
        want = {name: torch.from_numpy(getattr(targets, name)) for name in Seen.__slots__ if name != "pixels"}
        occupied = (want["shape"] >= 0).long()
        text = torch.cat([left.flatten(0, 1), right.flatten(0, 1)])
        text_target = torch.cat([want["letters"][..., 0].flatten(), want["letters"][..., 1].flatten()])
        loss = F.cross_entropy(there.flatten(0, 1), occupied.flatten())
        named = {"shape": shape, "color": color, "size": size}
        scores: dict[str, float] = {}
        for name, logits in named.items():
            loss = loss + F.cross_entropy(logits.flatten(0, 1), want[name].flatten())
            right_ones = (logits.argmax(-1) == want[name])[occupied == 1].float().mean()
            scores[name] = 100 * right_ones.item()
        error = (box - want["box"]).abs()[occupied == 1]
        scores["box"] = 16 * error.mean().item()
        loss = loss + 4 * error.mean() + 4 * F.cross_entropy(text, text_target)
        loss = loss + F.cross_entropy(background, want["background"])
        letters = text_target > 0
        scores["letters"] = 100 * (text.argmax(-1) == text_target)[letters].float().mean().item()
        return loss, scores


class SlotTeacher(nn.Module):
    """A throw-away linear head on the query tokens, and its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = (2, len(SHAPES), len(COLORS), len(SIZES), 4)
        self.head = nn.Linear(WIDTH, sum(self.parts))
        self.head_text = nn.Linear(WIDTH, len(CHARACTERS) + 1)

    def forward(self, read_BQD: Tensor, targets: Seen) -> tuple[Tensor, dict[str, float]]:
        """Return the loss, and how many cells' colours and shapes and how many letters are told right (percent)."""
        there, shape, color, size, box = self.head(read_BQD[:, :CELLS]).float().split(self.parts, dim=-1)
        text = self.head_text(read_BQD[:, CELLS:]).float().flatten(0, 1)
        want_shape, want_color = torch.from_numpy(targets.cell_shape), torch.from_numpy(targets.cell_color)
        want_text = torch.from_numpy(targets.text).flatten()
        occupied = want_shape >= 0
        loss = F.cross_entropy(there.flatten(0, 1), occupied.long().flatten())
        for logits, want in ((shape, want_shape), (color, want_color), (size, torch.from_numpy(targets.cell_size))):
            loss = loss + F.cross_entropy(logits.flatten(0, 1), want.flatten())
        loss = loss + 20 * (box - torch.from_numpy(targets.cell_box)).abs()[occupied].mean()
        loss = loss + 2 * F.cross_entropy(text, want_text)
        scores = {
            "shape": 100 * (shape.argmax(-1) == want_shape)[occupied].float().mean().item(),
            "color": 100 * (color.argmax(-1) == want_color)[occupied].float().mean().item(),
            "text": 100 * (text.argmax(-1) == want_text)[want_text > 0].float().mean().item(),
        }
        return loss, scores
