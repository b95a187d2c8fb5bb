"""Questions in the manner of GQA: small programs over the scene graph, run to get their answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from evalkit.demo.language import phrase, relations, sides, ways
from evalkit.demo.scenes import COLORS, INVERSE, Relation, Scene, Thing, relation_of
from evalkit.demo.shapes import SHAPES


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a program."""

    operation: str
    argument: str
    dependencies: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphQuestion:
    """A question with its program, its answer and GQA's labels."""

    text: str
    answer: str
    full: str
    steps: tuple[Step, ...]
    structural: str
    semantic: str
    detailed: str
    group: str | None
    local: str
    choices: tuple[str, ...]
    """The answers that fit the question: GQA's "valid"."""
    needs: frozenset[tuple[str, str]] = field(default_factory=frozenset)
    """(thing, attribute) pairs that fix the answer."""
    tells: frozenset[tuple[str, str]] = field(default_factory=frozenset)
    """(thing, attribute) pairs that a right answer gives away."""


Named = tuple[Thing, str, tuple[Step, ...], frozenset[tuple[str, str]]]
YES_NO = ("yes", "no")


def _ident(thing: Thing) -> str:
    return str(thing.index)


def _select(thing: Thing, names: tuple[str, ...]) -> tuple[Step, ...]:
    """Return the steps that single out the thing by these attributes."""
    noun = thing.shape if "shape" in names else "object"
    steps = [Step("select", f"{noun} ({_ident(thing)})")]
    for name in ("size", "color"):
        if name in names:
            steps.append(Step(f"filter {name}", thing.get(name), (len(steps) - 1,)))
    return tuple(steps)


def _named(scene: Scene, rng: random.Random, hidden: tuple[str, ...] = (), thing: Thing | None = None) -> Named | None:
    thing = thing or rng.choice(scene.things)
    choices = ways(scene, thing, hidden)
    if not choices:
        return None
    names = choices[0] if rng.random() < 0.5 else rng.choice(choices)
    known = frozenset((_ident(thing), name) for name in names)
    return thing, f"the {phrase(thing, names)}", _select(thing, names), known


def _chained(scene: Scene, rng: random.Random, hidden: tuple[str, ...]) -> Named | None:
    """Return a thing named by one relation, or by two in two of five cases."""
    thing, relation, anchor = rng.choice(relations(scene) or ((None, None, None),))
    start = _named(scene, rng, (), anchor) if anchor else None
    if thing is None or relation is None or start is None:
        return None
    text, steps, known = f"{relation} {start[1]}", start[2], start[3]
    steps = (*steps, Step("relate", f"_,{relation},s ({_ident(thing)})", (len(steps) - 1,)))
    if rng.random() < 0.4:
        longer = [found for found in relations(scene) if found[2] is thing and found[0] is not anchor]
        if longer:
            middle = thing
            thing, second, _ = rng.choice(longer)
            text = f"{second} the {middle.shape if rng.random() < 0.5 else 'object'} {text}"
            steps = (*steps, Step("relate", f"_,{second},s ({_ident(thing)})", (len(steps) - 1,)))
    noun = thing.shape if "shape" not in hidden and rng.random() < 0.5 else "object"
    return thing, f"the {noun} {text}", steps, known


def _after(steps: tuple[Step, ...], operation: str, argument: str, *, on: tuple[int, ...] = ()) -> tuple[Step, ...]:
    return (*steps, Step(operation, argument, on or (len(steps) - 1,)))


def _query(scene: Scene, rng: random.Random) -> GraphQuestion | None:
    """Colour or shape of a thing named by attributes or by relations."""
    attribute = rng.choice(("color", "shape"))
    far = rng.random() < 0.65
    named = (_chained if far else _named)(scene, rng, (attribute,))
    if named is None:
        return None
    thing, name, steps, known = named
    answer = thing.get(attribute)
    if attribute == "color":
        text, full = f"What color is {name}?", f"The {thing.shape} is {answer}."
        detailed, semantic, operation = ("categoryRelS", "rel", "query") if far else ("directOf", "attr", "query")
    else:
        text, full = f"What shape is {name}?", f"The shape is a {answer}."
        detailed, semantic, operation = ("relS", "rel", "query") if far else ("categoryAttr", "cat", "query")
    return GraphQuestion(
        text=text,
        answer=answer,
        full=full,
        steps=_after(steps, operation, "color" if attribute == "color" else "name"),
        structural="query",
        semantic=semantic,
        detailed=detailed,
        group=attribute,
        local=f"10q-{thing.shape if attribute == 'color' else thing.color}_{attribute}",
        choices=COLORS if attribute == "color" else SHAPES,
        tells=known | {(_ident(thing), attribute)},
    )


def _side(scene: Scene, rng: random.Random) -> GraphQuestion | None:
    named = _named(scene, rng)
    side = named and sides(named[0])[0]
    if named is None or side is None:
        return None
    thing, name, steps, known = named
    kind = rng.randrange(3)
    ident = (_ident(thing), "hposition")
    if kind == 0:
        text, full = f"On which side of the picture is {name}?", f"{name.capitalize()} is on the {side} of the image."
        steps, answer, structural, detailed = _after(steps, "query", "hposition"), side, "query", "positionQuery"
    elif kind == 1:
        text = f"Is {name} on the left or on the right of the picture?"
        full = f"{name.capitalize()} is on the {side} of the image."
        steps, answer = _after(steps, "choose hposition", "left|right"), side
        structural, detailed = "choose", "positionChoose"
    else:
        asked = rng.choice(("left", "right"))
        text = f"Is {name} on the {asked} of the picture?"
        answer, structural, detailed = "yes" if asked == side else "no", "verify", "positionVerify"
        full = f"{answer.capitalize()}, {name} is on the {side} of the image."
        steps = _after(steps, "verify hposition", asked)
    return GraphQuestion(
        text=text,
        answer=answer,
        full=full,
        steps=steps,
        structural=structural,
        semantic="attr",
        detailed=detailed,
        group=None,
        local=f"06-{thing.shape}_{side}",
        choices=YES_NO if structural == "verify" else ("left", "right"),
        needs=frozenset({ident}),
        tells=known | {ident},
    )


def _attribute(scene: Scene, rng: random.Random) -> GraphQuestion | None:
    """Verify or choose a colour, or verify a colour and a size at once."""
    kind = rng.randrange(3)
    hidden = ("color", "size") if kind == 2 else ("color",)
    named = (_chained if rng.random() < 0.4 else _named)(scene, rng, hidden)
    if named is None:
        return None
    thing, name, steps, known = named
    others = sorted({other.color for other in scene.things} - {thing.color}) or [c for c in COLORS if c != thing.color]
    wrong = rng.choice(others)
    ident = (_ident(thing), "color")
    if kind == 0:
        first, second = rng.sample((thing.color, wrong), 2)
        text, answer, full = f"Is {name} {first} or {second}?", thing.color, f"The {thing.shape} is {thing.color}."
        steps = _after(steps, "choose color", f"{thing.color}|{wrong}")
        structural, detailed, choices = "choose", "chooseAttr", (thing.color, wrong)
    elif kind == 1:
        asked = rng.choice((thing.color, wrong))
        answer = "yes" if asked == thing.color else "no"
        text, full = f"Is {name} {asked}?", f"{answer.capitalize()}, the {thing.shape} is {thing.color}."
        steps = _after(steps, "verify color", asked)
        structural, detailed, choices = "verify", "verifyAttr" if answer == "yes" else "verifyAttrC", YES_NO
    else:
        size = rng.choice(("small", "large")) if rng.random() < 0.5 else thing.size
        asked = thing.color if size != thing.size or rng.random() < 0.65 else wrong
        answer = "yes" if (asked, size) == (thing.color, thing.size) else "no"
        text = f"Is {name} both {asked} and {size}?"
        full = f"{answer.capitalize()}, the {thing.shape} is {thing.color} and {thing.size}."
        last = len(steps) - 1
        steps = _after(steps, "verify color", asked)
        steps = _after(steps, "verify size", size, on=(last,))
        steps = _after(steps, "and", "", on=(last + 1, last + 2))
        structural, detailed, choices = "logical", "verifyAttrs", YES_NO
    needs = {ident, (_ident(thing), "size")} if structural == "logical" else {ident}
    return GraphQuestion(
        text=text,
        answer=answer,
        full=full,
        steps=steps,
        structural=structural,
        semantic="attr",
        detailed=detailed,
        group="color" if structural == "choose" else None,
        local=f"10c-{thing.shape}_color",
        choices=choices,
        needs=frozenset(needs),
        tells=known | {ident} if structural == "choose" or answer == "yes" else known,
    )


def _relation(scene: Scene, rng: random.Random) -> GraphQuestion | None:
    first, second = _named(scene, rng), _named(scene, rng)
    if first is None or second is None or first[0] is second[0]:
        return None
    relation = relation_of(first[0], second[0])
    if relation is None:
        return None
    opposite = INVERSE[relation]
    one, two = first[0].shape, second[0].shape
    pair = (f"{_ident(first[0])} {_ident(second[0])}", "relation")
    if rng.random() < 0.5:
        pick = rng.sample((relation, opposite), 2)
        answer = relation.removeprefix("to the ").removesuffix(" of")
        text = f"Is {first[1]} {pick[0]} or {pick[1]} {second[1]}?"
        full = f"The {one} is {relation} the {two}."
        steps = _after(second[2], "choose rel", f"{one},{relation}|{opposite},s ({_ident(first[0])})")
        structural, detailed = "choose", "relChooser"
        choices = tuple(r.removeprefix("to the ").removesuffix(" of") for r in (relation, opposite))
    else:
        asked: Relation = relation if rng.random() < 0.5 else rng.choice([r for r in INVERSE if r != relation])
        answer = "yes" if asked == relation else "no"
        text, full = f"Is {first[1]} {asked} {second[1]}?", f"{answer.capitalize()}, the {one} is {relation} the {two}."
        steps = _after(second[2], "verify rel", f"{one},{asked},s ({_ident(first[0])})")
        structural, detailed, choices = "verify", "relVerify" if answer == "yes" else "relVerifyCr", YES_NO
    return GraphQuestion(
        text=text,
        answer=answer,
        full=full,
        steps=steps,
        structural=structural,
        semantic="rel",
        detailed=detailed,
        group=None,
        local=f"13-{two}_{one}",
        choices=choices,
        needs=frozenset({pair}),
        tells=frozenset({pair}) if structural == "choose" or answer == "yes" else frozenset(),
    )


def _exist(scene: Scene, rng: random.Random) -> GraphQuestion | None:
    """Is there both a ... and a ..., or: is there a ... or a ...?"""
    present = sorted({thing.shape for thing in scene.things})
    absent = [shape for shape in SHAPES if shape not in present]
    word = rng.choice(("and", "or"))
    wanted = rng.random() < 0.5
    if word == "and":
        pool = (present, present) if wanted else (present, absent)
    else:
        pool = (present, absent) if wanted else (absent, absent)
    one, two = rng.choice(pool[0]), rng.choice(pool[1])
    if one == two:
        return None
    one, two = rng.sample((one, two), 2)
    steps: tuple[Step, ...] = ()
    for shape in (one, two):
        found = scene.where(shape=shape)
        steps = (*steps, Step("select", f"{shape} ({_ident(found[0]) if found else '-'})"))
        steps = (*steps, Step("exist", "?", (len(steps) - 1,)))
    steps = (*steps, Step(word, "", (1, 3)))
    answer = "yes" if wanted else "no"
    both = f"both a {one} and a {two}" if word == "and" else f"a {one} or a {two}"
    return GraphQuestion(
        text=f"Is there {both}?",
        answer=answer,
        full=f"{answer.capitalize()}, there {'is' if wanted else 'is not'} {both}.",
        steps=steps,
        structural="logical",
        semantic="obj",
        detailed="existAnd" if word == "and" else "existOr",
        group=None,
        local=f"09exist{word.capitalize()}-{min(one, two)}_{max(one, two)}",
        choices=YES_NO,
    )


def _compare(scene: Scene, rng: random.Random) -> GraphQuestion | None:
    """Same colour or shape? As many "yes" as "no"; or what two things have in common."""
    if len(scene.things) < 2:
        return None
    wanted = rng.random() < 0.5
    attribute = rng.choice(("color", "shape"))
    pairs = [
        (a, b)
        for a in scene.things
        for b in scene.things
        if a is not b and (a.get(attribute) == b.get(attribute)) == wanted
    ]
    if not pairs:
        return None
    one, two = rng.choice(pairs)
    first, second = _named(scene, rng, (attribute,), one), _named(scene, rng, (attribute,), two)
    if first is None or second is None:
        return None
    moved = tuple(Step(s.operation, s.argument, tuple(d + len(first[2]) for d in s.dependencies)) for s in second[2])
    ends = (len(first[2]) - 1, len(first[2]) + len(second[2]) - 1)
    steps = (*first[2], *moved)
    shared = [name for name in ("color", "shape", "size") if one.get(name) == two.get(name)]
    common = wanted and len(shared) == 1 and rng.random() < 0.4
    if common:
        text, answer = f"What is common to {first[1]} and {second[1]}?", attribute
        full = f"The {attribute}, both {first[1]} and {second[1]} are {one.get(attribute)}."
        steps, detailed = (*steps, Step("common", "", ends)), "twoCommon"
    else:
        text, answer = f"Do {first[1]} and {second[1]} have the same {attribute}?", "yes" if wanted else "no"
        full = f"{answer.capitalize()}, one is {one.get(attribute)} and the other is {two.get(attribute)}."
        steps, detailed = (*steps, Step(f"same {attribute}", "", ends)), "twoSame" if wanted else "twoSameC"
    return GraphQuestion(
        text=text,
        answer=answer,
        full=full,
        steps=steps,
        structural="compare",
        semantic="attr",
        detailed=detailed,
        group=None,
        local=f"09{'common' if common else 'same'}-{min(one.shape, two.shape)}_{max(one.shape, two.shape)}",
        choices=("color", "shape", "size") if common else YES_NO,
    )


_MAKERS: tuple[tuple[Callable[[Scene, random.Random], GraphQuestion | None], int], ...] = (
    (_query, 11),
    (_side, 3),
    (_attribute, 6),
    (_relation, 5),
    (_exist, 3),
    (_compare, 4),
)


def graph_questions(scene: Scene, rng: random.Random, number: int) -> list[GraphQuestion]:
    """Return up to `number` questions, about half of them by way of relations."""
    found: dict[str, GraphQuestion] = {}
    for maker, _ in rng.choices(_MAKERS, [weight for _, weight in _MAKERS], k=6 * number):
        if len(found) == number:
            break
        question = maker(scene, rng)
        if question is not None:
            found.setdefault(question.text, question)
    return list(found.values())
