"""How people speak of a scene: unique noun phrases, captions, and expressions that refer to one thing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

from evalkit.demo.scenes import INVERSE, RELATIONS, SIDE, Relation, Scene, Thing, relation_of
from evalkit.demo.shapes import SUB

ATTRIBUTES = ("size", "color", "shape")
_SUBSETS = (
    ("shape",),
    ("color",),
    ("color", "shape"),
    ("size", "shape"),
    ("size", "color"),
    ("size",),
    ("size", "color", "shape"),
)
NUMERALS = ("zero", "one", "two", "three", "four", "five", "six")


def article(phrase: str) -> str:
    """Return the phrase with "a" or "an" before it.

    >>> article("orange star"), article("large ring")
    ('an orange star', 'a large ring')
    """
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(shape: str) -> str:
    """Return the plural of a shape.

    >>> plural("cross"), plural("moon")
    ('crosses', 'moons')
    """
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def phrase(thing: Thing, attributes: Sequence[str]) -> str:
    """Return words for these attributes of the thing, without an article: "small red object"."""
    words = [thing.get(name) for name in ATTRIBUTES if name in attributes]
    return " ".join(words if "shape" in attributes else [*words, "object"])


@lru_cache(maxsize=8192)
def ways(scene: Scene, thing: Thing, hidden: tuple[str, ...] = ()) -> tuple[tuple[str, ...], ...]:
    """Return the sets of attributes that single out the thing, shortest first, `hidden` attributes left out."""
    return tuple(
        names
        for names in _SUBSETS
        if not any(name in hidden for name in names)
        and len(scene.where(**{name: thing.get(name) for name in names})) == 1
    )


def name_of(scene: Scene, thing: Thing, rng: random.Random, hidden: tuple[str, ...] = ()) -> str | None:
    """Return "the ..." that singles out the thing, short ones more often, or None when attributes do not suffice."""
    choices = ways(scene, thing, hidden)
    if not choices:
        return None
    names = choices[0] if rng.random() < 0.5 else rng.choice(choices)
    return f"the {phrase(thing, names)}"


def sides(thing: Thing) -> tuple[str | None, str | None]:
    """Return "left" or "right" and "top" or "bottom" of the picture, None for what lies near the middle."""
    third = SIDE * SUB // 3
    across = "left" if thing.x < third else "right" if thing.x > 2 * third else None
    along = "top" if thing.y < third else "bottom" if thing.y > 2 * third else None
    return across, along


@lru_cache(maxsize=1024)
def relations(scene: Scene) -> tuple[tuple[Thing, Relation, Thing], ...]:
    """Return every (thing, relation, anchor) where the thing is the only one of the scene in this relation."""
    found = ((scene.related(relation, anchor), relation, anchor) for anchor in scene.things for relation in RELATIONS)
    return tuple((things[0], relation, anchor) for things, relation, anchor in found if len(things) == 1)


def salient(scene: Scene) -> list[Thing]:
    """Return the things as people notice them: large before small, then from the top left."""
    return sorted(scene.things, key=lambda t: (t.size == "small", t.y // (21 * SUB), t.x))


def _pair(first: Thing, second: Thing, parts: Sequence[str]) -> str:
    one, two = article(phrase(first, parts)), article(phrase(second, parts))
    relation = relation_of(first, second)
    return f"{one} {relation} {two}" if relation else f"{one} near {two}"


def _counted(scene: Scene) -> str:
    """Return "two circles, a star and three rings"."""
    shapes = sorted({thing.shape for thing in scene.things}, key=lambda s: (-len(scene.where(shape=s)), s))
    groups = []
    for shape in shapes:
        number = len(scene.where(shape=shape))
        groups.append(article(shape) if number == 1 else f"{NUMERALS[number]} {plural(shape)}")
    return groups[0] if len(groups) == 1 else f"{', '.join(groups[:-1])} and {groups[-1]}"


def captions(scene: Scene, rng: random.Random, number: int = 5) -> list[str]:
    """Return what `number` people write about the scene; the first one says the obvious thing in full."""
    things = salient(scene)
    full = ("size", "color", "shape")
    first = things[0]
    second = things[1] if len(things) > 1 else None
    standard = _pair(first, second, full) if second else article(phrase(first, full))
    if scene.sign is not None and second is None:
        standard = f"a sign that says {scene.sign.text} with {standard}"
    texts = [standard]
    for _ in range(20 * number):
        if len(texts) == number:
            return texts
        text = _variation(scene, things, rng)
        if text not in texts:
            texts.append(text)
    return [texts[i % len(texts)] for i in range(number)]  # a scene with one thing has not much to say about it


def _variation(scene: Scene, things: list[Thing], rng: random.Random) -> str:
    parts = ("color", "shape") if rng.random() < 0.5 else ("size", "color", "shape")
    first = things[0] if rng.random() < 0.75 else rng.choice(things)
    others = [thing for thing in things if thing is not first]
    roll = rng.random()
    if scene.sign is not None and roll < 0.35:
        return f"a sign that says {scene.sign.text} with {article(phrase(first, parts))}"
    if not others:
        tail = rng.choice((f" on a {scene.background} background", f" on {scene.background}", ""))
        return f"{article(phrase(first, parts))}{tail}"
    second = others[0] if rng.random() < 0.7 else rng.choice(others)
    if roll < 0.6:
        return _pair(first, second, parts)
    if roll < 0.7:
        return _pair(second, first, parts)
    if roll < 0.8 and len(things) > 2:
        return f"{_counted(scene)} on a {scene.background} background"
    if roll < 0.9:
        return f"{article(phrase(first, parts))} on a {scene.background} background"
    listed = [article(phrase(thing, ("color", "shape"))) for thing in things[:3]]
    return f"{', '.join(listed[:-1])} and {listed[-1]}"


def expressions(scene: Scene, thing: Thing, rng: random.Random, number: int = 3) -> list[tuple[str, str]]:
    """Return up to `number` different expressions that only this thing answers to, each with its kind.

    Kinds: "attribute" (red star), "place" (the ring on the left), "relation" (the one above the moon), "order".
    """
    found: list[tuple[str, str]] = []
    for names in ways(scene, thing):
        words = phrase(thing, names)
        found.append((f"the {words}" if rng.random() < 0.6 else words, "attribute"))
    for names in (("shape",), ("color", "shape"), ("color",)):
        same = scene.where(**{name: thing.get(name) for name in names})
        words = phrase(thing, names)
        across, along = sides(thing)
        if across and sum(sides(other)[0] == across for other in same) == 1:
            found.append((f"{across} {words}" if rng.random() < 0.5 else f"the {words} on the {across}", "place"))
        if along and sum(sides(other)[1] == along for other in same) == 1:
            found.append((f"{along} {words}" if rng.random() < 0.5 else f"the {words} at the {along}", "place"))
        if len(same) > 2:
            order = sorted(same, key=lambda t: t.x)
            if order[1] is thing and order[0].x + 3 * SUB < thing.x < order[2].x - 3 * SUB:
                found.append((f"second {words} from the left", "order"))
    for anchor in scene.things:
        relation = relation_of(thing, anchor) if anchor is not thing else None
        anchor_name = name_of(scene, anchor, rng) if relation else None
        if relation and anchor_name:
            for names in (("shape",), ("color", "shape"), ()):
                same = scene.where(**{name: thing.get(name) for name in names})
                if sum(other is not anchor and relation_of(other, anchor) == relation for other in same) == 1:
                    found.append((f"the {phrase(thing, names)} {relation} {anchor_name}", "relation"))
                    break
    unique = list(dict.fromkeys(found))
    kinds = sorted({kind for _, kind in unique})
    chosen: list[tuple[str, str]] = []
    while unique and len(chosen) < number:
        kind = rng.choice(kinds)
        of_kind = [item for item in unique if item[1] == kind]
        if of_kind:
            chosen.append(rng.choice(of_kind))
            unique.remove(chosen[-1])
        kinds = sorted({k for _, k in unique})
    return chosen


def inverse(relation: Relation) -> Relation:
    """Return the relation as seen from the other side."""
    return INVERSE[relation]
