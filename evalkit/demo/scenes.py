"""Scenes: coloured shapes on a loose grid, perhaps a sign with a word, some clutter; all from one seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

from evalkit.demo.shapes import SHAPES, SUB
from evalkit.demo.words import NUMBERS, WORDS

SIDE = 64
"""Pixels along a side of every picture."""

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
BACKGROUNDS = ("gray", "tan", "navy", "teal", "lavender")
SIZES = ("small", "large")
NOVEL_SHAPES = ("heart", "moon")
FAMILIAR_SHAPES = tuple(shape for shape in SHAPES if shape not in NOVEL_SHAPES)
HELD_OUT = (
    ("red", "square"),
    ("orange", "circle"),
    ("yellow", "star"),
    ("green", "triangle"),
    ("blue", "cross"),
    ("purple", "diamond"),
    ("white", "ring"),
    ("pink", "hexagon"),
)
"""Pairs of familiar colour and familiar shape that no COCO image of the world and no training caption has."""

Domain: TypeAlias = Literal["in", "near", "out", "any"]
Relation: TypeAlias = Literal["to the left of", "to the right of", "above", "below"]
RELATIONS: tuple[Relation, ...] = ("to the left of", "to the right of", "above", "below")
INVERSE: dict[Relation, Relation] = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Thing:
    """One shape. Later things are drawn over earlier ones."""

    index: int
    shape: str
    color: str
    size: str
    x: int
    """Centre, in sub-pixels."""
    y: int
    radius: int
    """In sub-pixels."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The square around it, in whole pixels: x1, y1, x2, y2, the second corner outside."""
        return (
            (self.x - self.radius) // SUB,
            (self.y - self.radius) // SUB,
            -(-(self.x + self.radius) // SUB),
            -(-(self.y + self.radius) // SUB),
        )

    def get(self, attribute: str) -> str:
        """Return the colour, the shape or the size."""
        value: str = getattr(self, attribute)
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Sign:
    """A board with a word or a number on it; x and y are its upper left corner in pixels."""

    text: str
    x: int
    y: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The board in pixels."""
        return self.x, self.y, self.x + 6 * len(self.text) + 4, self.y + 14


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scene:
    """All there is to know about a picture. Compared by identity, so that what is asked of it can be remembered."""

    seed: int
    things: tuple[Thing, ...]
    background: str
    sign: Sign | None

    def where(self, **attributes: str) -> tuple[Thing, ...]:
        """Return the things with all these attributes, in drawing order."""
        return tuple(t for t in self.things if all(t.get(key) == value for key, value in attributes.items()))

    def related(self, relation: Relation, anchor: Thing) -> tuple[Thing, ...]:
        """Return the things that stand in this relation to the anchor."""
        return tuple(t for t in self.things if t is not anchor and relation_of(t, anchor) == relation)


@lru_cache(maxsize=4096)
def relation_of(thing: Thing, anchor: Thing) -> Relation | None:
    """Return where `thing` is as seen from `anchor`; None where neither direction clearly prevails."""
    dx, dy = thing.x - anchor.x, thing.y - anchor.y
    if abs(dx) >= 7 * SUB and 5 * abs(dx) >= 6 * abs(dy):
        return "to the left of" if dx < 0 else "to the right of"
    if abs(dy) >= 7 * SUB and 5 * abs(dy) >= 6 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def familiar(scene: Scene) -> bool:
    """Return whether nothing in the scene is of a novel shape or a held-out pair."""
    return not any(t.shape in NOVEL_SHAPES or (t.color, t.shape) in HELD_OUT for t in scene.things)


def _kinds(rng: random.Random, domain: Domain) -> list[tuple[str, str]]:
    """Return the (colour, shape) pairs this scene draws from: few enough that things get mixed up easily."""
    colors = rng.sample(COLORS, rng.randint(3, 5))
    if domain == "out":
        return [(color, shape) for color in colors for shape in NOVEL_SHAPES]
    shapes = rng.sample(SHAPES if domain == "any" else FAMILIAR_SHAPES, rng.randint(3, 4))
    pairs = [(color, shape) for color in colors for shape in shapes]
    return pairs if domain == "any" else [pair for pair in pairs if pair not in HELD_OUT]


def _place(
    rng: random.Random, cells: list[tuple[int, int]], kinds: list[tuple[str, str]], low: int, high: int
) -> list[Thing]:
    """Put one thing of each kind near the middle of its cell; `low` and `high` bound the centres in y (sub-pixels)."""
    things: list[Thing] = []
    for index, ((row, column), (color, shape)) in enumerate(zip(cells, kinds, strict=True)):
        size = rng.choice(SIZES)
        radius = rng.randint(19, 22) if size == "small" else rng.randint(33, 38)
        x = (2 * column + 1) * SIDE * SUB // 6 + rng.randint(-4 * SUB, 4 * SUB)
        y = (2 * row + 1) * SIDE * SUB // 6 + rng.randint(-4 * SUB, 4 * SUB)
        x = min(max(x, radius + SUB), SIDE * SUB - radius - SUB)
        y = min(max(y, low + radius + SUB), high - radius - SUB)
        things.append(Thing(index=index, shape=shape, color=color, size=size, x=x, y=y, radius=radius))
    return things


def _crowded(things: list[Thing]) -> bool:
    """Return whether some thing is hidden too much to be recognised (squares of 0.8 radius, rough but quick)."""
    for below in things:
        for above in things[below.index + 1 :]:
            reach = 4 * (below.radius + above.radius) // 5
            over_x = min(reach - abs(below.x - above.x), 8 * min(below.radius, above.radius) // 5)
            over_y = min(reach - abs(below.y - above.y), 8 * min(below.radius, above.radius) // 5)
            if over_x > 0 and over_y > 0 and 4 * over_x * over_y > (8 * below.radius // 5) ** 2:
                return True
    return False


def make_scene(seed: int, domain: Domain = "any", sign: bool | None = None) -> Scene:
    """Return the scene of this seed.

    Args:
        seed: Any integer; the same seed and settings give the same scene.
        domain: "in": no held-out pair and no novel shape; "near": at least one held-out pair; "out": novel shapes
            only; "any": all there is.
        sign: With a sign, without one, or (None) in three of ten scenes.
    """
    rng = random.Random(f"scene {seed} {domain}")
    with_sign = rng.random() < 0.3 if sign is None else sign
    board: Sign | None = None
    rows, low, high = [0, 1, 2], 0, SIDE * SUB
    if with_sign:
        text = rng.choice(NUMBERS) if rng.random() < 0.3 else rng.choice(WORDS)
        width = 6 * len(text) + 4
        top = rng.random() < 0.5
        board = Sign(text=text, x=rng.randint(1, SIDE - 1 - width), y=rng.randint(1, 4) if top else rng.randint(46, 49))
        rows = [1, 2] if top else [0, 1]
        low, high = (16 * SUB, high) if top else (low, 48 * SUB)
    grid = [(row, column) for row in rows for column in range(3)]
    while True:
        number = rng.randint(1, 4) if with_sign else rng.choice((2, 3, 3, 4, 4, 5, 5, 6))
        pairs = _kinds(rng, domain)
        kinds = [rng.choice(pairs) for _ in range(number)]
        if domain == "near":
            kinds[rng.randrange(number)] = rng.choice(HELD_OUT)
        things = _place(rng, rng.sample(grid, number), kinds, low, high)
        if not _crowded(things):
            return Scene(seed=seed, things=tuple(things), background=rng.choice(BACKGROUNDS), sign=board)
