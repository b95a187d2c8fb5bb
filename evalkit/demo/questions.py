"""Questions in the manner of VQAv2, OK-VQA and TextVQA, each with the answer that the scene gives."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from evalkit.demo.language import article, name_of, plural, relations, sides
from evalkit.demo.scenes import COLORS, RELATIONS, SIZES, Scene, Thing, relation_of
from evalkit.demo.shapes import SHAPES
from evalkit.demo.words import (
    ANIMALS,
    CORNERS,
    FRUITS,
    HOMES,
    JEWELS,
    MIXTURES,
    PLACES,
    SOUNDS,
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its answer."""

    text: str
    answer: str
    type: str
    """VQAv2: how the question begins; OK-VQA: the kind of knowledge; TextVQA: what of the text is asked."""
    other: str = ""
    """What some people would answer instead; empty: the usual slips of the pen."""

    @property
    def answer_type(self) -> str:
        """VQAv2's "yes/no", "number" or "other"."""
        if self.answer in ("yes", "no"):
            return "yes/no"
        return "number" if self.answer.isdigit() else "other"


Maker = Callable[[Scene, random.Random], Question | None]
Picker = Callable[[Scene, random.Random, tuple[str, ...]], tuple[Thing, str] | None]


def _pick(scene: Scene, rng: random.Random, hidden: tuple[str, ...] = ()) -> tuple[Thing, str] | None:
    """Return a thing and a name that singles it out."""
    thing = rng.choice(scene.things)
    name = name_of(scene, thing, rng, hidden)
    return (thing, name) if name else None


def _far(scene: Scene, rng: random.Random, hidden: tuple[str, ...]) -> tuple[Thing, str] | None:
    """Return a thing named by its place beside another, at times by a chain of two relations."""
    found = [item for item in relations(scene) if name_of(scene, item[2], rng)]
    if not found:
        return None
    thing, relation, anchor = rng.choice(found)
    name = name_of(scene, anchor, rng) or ""
    if rng.random() < 0.3:
        longer = [item for item in relations(scene) if item[2] is thing and item[0] is not anchor]
        if longer:
            middle = thing
            thing, second, _ = rng.choice(longer)
            return thing, f"the object {second} the {_noun(middle, hidden)} {relation} {name}"
    return thing, f"the {_noun(thing, hidden)} {relation} {name}"


def _noun(thing: Thing, hidden: tuple[str, ...]) -> str:
    return thing.shape if "shape" not in hidden and thing.index % 2 else "object"


def _color(scene: Scene, rng: random.Random, pick: Picker = _pick) -> Question | None:
    picked = pick(scene, rng, ("color",))
    return picked and Question(f"What color is {picked[1]}?", picked[0].color, "what color is the")


def _shape(scene: Scene, rng: random.Random, pick: Picker = _pick) -> Question | None:
    picked = pick(scene, rng, ("shape",))
    return picked and Question(f"What is the shape of {picked[1]}?", picked[0].shape, "what is the")


def _size(scene: Scene, rng: random.Random) -> Question | None:
    picked = _pick(scene, rng, ("size",))
    return picked and Question(f"Is {picked[1]} small or large?", picked[0].size, "is the")


def _background(scene: Scene, rng: random.Random) -> Question | None:
    return Question("What color is the background?", scene.background, "what color is the")


def _side(scene: Scene, rng: random.Random) -> Question | None:
    picked = _pick(scene, rng)
    side = picked and sides(picked[0])[0]
    return Question(f"On which side is {picked[1]}?", side, "none of the above") if picked and side else None


def _group(scene: Scene, rng: random.Random) -> tuple[str, int]:
    """Return a plural and how many things of the scene it counts, rarely none."""
    thing = rng.choice(scene.things)
    color = rng.choice(COLORS) if rng.random() < 0.15 else thing.color
    roll = rng.random()
    if roll < 0.35:
        return plural(thing.shape), len(scene.where(shape=thing.shape))
    if roll < 0.65:
        return f"{color} objects", len(scene.where(color=color))
    if roll < 0.85:
        return f"{thing.size} objects", len(scene.where(size=thing.size))
    return f"{color} {plural(thing.shape)}", len(scene.where(color=color, shape=thing.shape))


def _count(scene: Scene, rng: random.Random) -> Question | None:
    if rng.random() < 0.25:
        return Question("How many objects are there?", str(len(scene.things)), "how many")
    group, number = _group(scene, rng)
    return Question(f"How many {group} are there?", str(number), "how many")


def _count_related(scene: Scene, rng: random.Random) -> Question | None:
    picked = _pick(scene, rng)
    relation = rng.choice(RELATIONS)
    return picked and Question(
        f"How many objects are {relation} {picked[1]}?", str(len(scene.related(relation, picked[0]))), "how many"
    )


def _exists(scene: Scene, rng: random.Random) -> Question | None:
    """A "no" is one attribute away from what is there, so that glancing is not enough."""
    thing = rng.choice(scene.things)
    names = rng.choice((("color", "shape"), ("size", "shape"), ("size", "color"), ("shape",)))
    wanted = {name: thing.get(name) for name in names}
    there = rng.random() < 0.36
    if not there:
        name = rng.choice(names)
        near = [other.get(name) for other in scene.things if other is not thing]
        wanted[name] = rng.choice(near if near and rng.random() < 0.5 else _VALUES[name])
        if scene.where(**wanted):
            return None
    words = [wanted[name] for name in ("size", "color", "shape") if name in wanted]
    named = " ".join(words if "shape" in wanted else [*words, "object"])
    return Question(f"Is there {article(named)}?", "yes" if there else "no", "is there a")


_VALUES: dict[str, tuple[str, ...]] = {"color": COLORS, "shape": SHAPES, "size": SIZES}


def _is_color(scene: Scene, rng: random.Random) -> Question | None:
    picked = _pick(scene, rng, ("color",))
    if picked is None:
        return None
    others = sorted({thing.color for thing in scene.things} - {picked[0].color}) or list(COLORS)
    color = picked[0].color if rng.random() < 0.5 else rng.choice(others)
    return Question(f"Is {picked[1]} {color}?", "yes" if color == picked[0].color else "no", "is the")


def _is_related(scene: Scene, rng: random.Random) -> Question | None:
    first, second = _pick(scene, rng), _pick(scene, rng)
    if first is None or second is None or first[0] is second[0]:
        return None
    relation = relation_of(first[0], second[0])
    if relation is None:
        return None
    asked = relation if rng.random() < 0.5 else rng.choice([r for r in RELATIONS if r != relation])
    return Question(f"Is {first[1]} {asked} {second[1]}?", "yes" if asked == relation else "no", "is the")


def _larger(scene: Scene, rng: random.Random) -> Question | None:
    first, second = _pick(scene, rng, ("size",)), _pick(scene, rng, ("size",))
    if first is None or second is None or first[0].size == second[0].size:
        return None
    return Question(f"Is {first[1]} larger than {second[1]}?", "yes" if first[0].size == "large" else "no", "is the")


def _more(scene: Scene, rng: random.Random) -> Question | None:
    """As many "yes" as "no": the answer is drawn first, ties only stand under "no"."""
    (group, number), (other, other_number) = _group(scene, rng), _group(scene, rng)
    if group == other or (group.split()[-1] != other.split()[-1] and "objects" in (group + other)):
        return None
    if number == other_number and rng.random() < 0.7:
        return None
    wanted = rng.random() < 0.5
    if (number > other_number) != wanted:
        (group, number), (other, other_number) = (other, other_number), (group, number)
    if (number > other_number) != wanted:
        return None
    return Question(f"Are there more {group} than {other}?", "yes" if wanted else "no", "are there")


_VQA: tuple[tuple[Maker, int], ...] = (
    (_color, 10),
    (_shape, 9),
    (_size, 4),
    (partial(_color, pick=_far), 10),
    (partial(_shape, pick=_far), 10),
    (_background, 2),
    (_side, 3),
    (_count, 8),
    (_count_related, 6),
    (_exists, 11),
    (_is_color, 6),
    (_is_related, 8),
    (_larger, 4),
    (_more, 8),
)


def _draw(makers: tuple[tuple[Maker, int], ...], scene: Scene, rng: random.Random, number: int) -> Iterable[Question]:
    weights = [weight for _, weight in makers]
    asked: set[str] = set()
    for maker, _ in rng.choices(makers, weights, k=8 * number):
        if len(asked) == number:
            return
        question = maker(scene, rng)
        if question is not None and question.text not in asked:
            asked.add(question.text)
            yield question


def vqa_questions(scene: Scene, rng: random.Random, number: int) -> list[Question]:
    """Return up to `number` different questions about what is seen."""
    return list(_draw(_VQA, scene, rng, number))


def _someone(scene: Scene, rng: random.Random, hidden: tuple[str, ...]) -> tuple[Thing, str] | None:
    return _far(scene, rng, hidden) if rng.random() < 0.5 else _pick(scene, rng, hidden)


def _by_color(facts: dict[str, tuple[str, str]], text: str, kind: str) -> Maker:
    def make(scene: Scene, rng: random.Random) -> Question | None:
        picked = _someone(scene, rng, ("color",))
        fact = picked and facts.get(picked[0].color)
        return Question(text.format(picked[1]), fact[0], kind, fact[1]) if picked and fact else None

    return make


def _by_shape(scene: Scene, rng: random.Random) -> Question | None:
    picked = _someone(scene, rng, ("shape",))
    if picked is None:
        return None
    fact = PLACES[picked[0].shape]
    return Question(f"What everyday thing has the shape of {picked[1]}?", fact[0], "two", fact[1])


def _corners(scene: Scene, rng: random.Random) -> Question | None:
    picked = _someone(scene, rng, ("shape",))
    number = CORNERS.get(picked[0].shape) if picked else None
    return Question(f"How many corners does {picked[1]} have?", str(number), "four") if picked and number else None


def _mixed(scene: Scene, rng: random.Random) -> Question | None:
    first, second = _pick(scene, rng, ("color",)), _pick(scene, rng, ("color",))
    if first is None or second is None:
        return None
    one, two = sorted((first[0].color, second[0].color))
    mixture = MIXTURES.get((one, two))
    text = f"Mixing the colors of {first[1]} and {second[1]} gives what?"
    return Question(text, mixture, "ten") if mixture else None


def _spoken(scene: Scene, rng: random.Random) -> Question | None:
    text = scene.sign.text if scene.sign else ""
    if text in SOUNDS:
        return Question("What sound does the animal on the sign make?", SOUNDS[text], "five")
    return Question("Where would you find what the sign names?", HOMES[text], "six") if text in HOMES else None


_KNOWLEDGE: tuple[tuple[Maker, int], ...] = (
    (_by_color(FRUITS, "Which fruit has the color of {}?", "three"), 5),
    (_by_color(ANIMALS, "Which animal has the color of {}?", "five"), 5),
    (_by_color(JEWELS, "Which jewel has the color of {}?", "two"), 4),
    (_by_shape, 6),
    (_corners, 5),
    (_mixed, 12),
    (_spoken, 8),
)


def knowledge_questions(scene: Scene, rng: random.Random, number: int) -> list[Question]:
    """Return up to `number` different questions that take the picture and a fact outside it."""
    return list(_draw(_KNOWLEDGE, scene, rng, number))


def text_questions(scene: Scene, rng: random.Random) -> list[Question]:
    """Return questions about what is written; none without a sign."""
    if scene.sign is None:
        return []
    text = scene.sign.text
    if text.isdigit():
        asked = rng.choice(("What number is on the sign?", "Which number is written?"))
        return [
            Question(asked, text, "number"),
            Question("What is the last digit on the sign?", text[-1], "letter"),
        ]
    asked = rng.choice(("What does the sign say?", "What word is on the sign?", "What is written on the sign?"))
    return [
        Question(asked, text, "word"),
        Question("What is the first letter on the sign?", text[0], "letter"),
    ]
