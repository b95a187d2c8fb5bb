"""GQA: accuracy and its companions. Follows `eval.py` of the GQA release ("Evaluation code for GQA").

Answers are compared as they are: no stripping, no lower case (what papers strip, they strip before; see
`evalkit.extract`). Only balanced questions are scored; the others matter as entailed questions of balanced ones.

A sample's reference is
    {"answer": str, "is_balanced": bool, "types": {"structural", "semantic", "detailed"}, "groups": {"global", "local"},
     "semantic": [{"operation", "argument", ...}], "entailed": [question id],
     "choices": {"valid": [str], "plausible": [str]} | None}
its `fields["question"]` the question (for the accuracy by length), its answer text. Only "answer" is required.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from evalkit.types import Answered, Json, Metric, MetricSettings, Sample, Scores

Region: TypeAlias = tuple[float, float, float, float]
"""(x1, y1, x2, y2) as fractions of the image."""

# A step whose "operation: argument" holds one of these asks for the answer and is no reasoning step.
_FINAL_STEPS = ("exist", "query: name", "choose name")
# What questions about a common property ("What do they have in common?") may answer, whatever their choices say.
_COMMON = ("color", "material", "shape")


def num_steps(semantic: Sequence[Mapping[str, str]]) -> int:
    """Return the number of reasoning steps of a question's functional program (`getStepsNum`).

    >>> num_steps([{"operation": "select", "argument": "scene"}, {"operation": "query", "argument": "name"}])
    1
    """
    steps = (f"{step['operation']}: {step['argument']}" for step in semantic)
    return sum(not any(final in step for final in _FINAL_STEPS) for step in steps)


def belongs(answer: str, choices: Sequence[str], *, detailed: str) -> bool:
    """Return whether an answer is among a question's valid (or plausible) choices (`belongs`).

    Args:
        answer: The predicted answer.
        choices: The question's list in the choices file.
        detailed: The question's detailed type; the list of those with "Common" in it is replaced.

    >>> belongs("red", ["red", "blue"], detailed="categoryAttr"), belongs("color", ["red"], detailed="twoCommon")
    (True, True)
    """
    return answer in (_COMMON if "Common" in detailed else choices)


def consistency(question_id: str, entailed: Sequence[str], correct: Mapping[str, bool]) -> float | None:
    """Return the share of the questions entailed by a correctly answered one that are correct too.

    Args:
        question_id: The question; it usually stands in its own list, and is not counted.
        entailed: Ids of the questions whose answers follow.
        correct: Whether each question was answered right; it must hold the question and all that it entails.

    Returns:
        None where the question was answered wrongly or entails no other: it is not counted. The corpus score is the
        mean over the rest.

    Raises:
        KeyError: A question has not been answered.

    >>> consistency("1", ["1", "2", "3"], {"1": True, "2": True, "3": False})
    0.5
    """
    others = [other for other in entailed if other != question_id]
    if not correct[question_id] or not others:
        return None
    return sum(correct[other] for other in others) / len(others)


def distribution(answers: Iterable[tuple[str | None, str, str]]) -> float | None:
    """Return how far the predicted answers are from the distribution of the right ones; lower is better.

    Per group of questions, sum (observed - expected)^2 / expected over the right answers; then the mean of the groups
    weighted by their size; then a hundredth of it, as the script prints it (it is no percentage).

    Args:
        answers: For each question its global group (None: not counted), the right answer, the prediction.

    Returns:
        None where no question has a group.

    >>> distribution([("color", "red", "red"), ("color", "red", "red"), ("color", "blue", "red"), (None, "yes", "no")])
    0.015
    """
    gold: defaultdict[str, Counter[str]] = defaultdict(Counter)
    predicted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for group, answer, prediction in answers:
        if group is not None:
            gold[group][answer] += 1
            predicted[group][prediction] += 1
    if not gold:
        return None
    total = 0.0
    for group, expected in gold.items():
        chi_square = sum((predicted[group][answer] - count) ** 2 / count for answer, count in expected.items())
        total += chi_square * expected.total()
    return total / sum(expected.total() for expected in gold.values()) / 100


def grounding_regions(annotations: Mapping[str, Mapping[str, str]], scene_graph: Mapping[str, Json]) -> list[Region]:
    """Return the regions that a question and its full answer point to.

    The script means to add the whole image for questions about the scene, but looks for "scene" among the keys of the
    program's steps, where it never is; so it is not added here either.

    Args:
        annotations: {"question": {token: object id}, "fullAnswer": {token: object id}}.
        scene_graph: {"width", "height", "objects": {object id: {"x", "y", "w", "h"}}} in pixels.

    >>> scene_graph = {"width": 200, "height": 100, "objects": {"7": {"x": 20, "y": 10, "w": 100, "h": 50}}}
    >>> grounding_regions({"question": {"3": "7"}, "fullAnswer": {}}, scene_graph)
    [(0.1, 0.1, 0.6, 0.6)]
    """
    width, height = scene_graph["width"], scene_graph["height"]
    regions = []
    for object_id in [*annotations["question"].values(), *annotations["fullAnswer"].values()]:
        thing = scene_graph["objects"][object_id]
        x, y = float(thing["x"]), float(thing["y"])
        regions.append((x / width, y / height, (x + thing["w"]) / width, (y + thing["h"]) / height))
    return regions


def grounding(attention: Sequence[Sequence[float]], regions: Sequence[Region]) -> float:
    """Return the attention that falls on the regions: over regions and cells, attention times the share covered.

    A cell in two regions counts twice. `attention[i][j]` belongs to column i and row j of the image, as in the script.

    Args:
        attention: A square map, which sums to 1 over the image.
        regions: As fractions of the image.

    >>> grounding([[0.25, 0.25], [0.25, 0.25]], [(0.0, 0.0, 0.5, 1.0)])  # the left half
    0.5
    """
    edge = 1 / len(attention)
    return sum(
        attention[i][j] * _overlap(edge * i, edge * (i + 1), x1, x2) * _overlap(edge * j, edge * (j + 1), y1, y2)
        for x1, y1, x2, y2 in regions
        for i in range(len(attention))
        for j in range(len(attention))
    )


def gqa_metric() -> Metric:
    """Return the metric of GQA.

    Fractions: `accuracy`, `binary` (all but structural type "query"), `open`, `validity`, `plausibility`,
    `consistency`; and `distribution`, in the unit the script prints (see `distribution`; lower is better). What the
    references do not allow is in `unavailable`. `details` holds the accuracy by structural and semantic type, number of
    words ("length") and of reasoning steps: {"structural": {"query": {"accuracy": 0.48, "n": 6805}, ...}, ...}.

    >>> reference = {"answer": "red", "types": {"structural": "query"}, "groups": {"global": "color"}}
    >>> sample = Sample(id="1", image_ids=("7",), reference=reference)
    >>> gqa_metric().compute([Answered(sample=sample, answer="blue")], MetricSettings()).aggregate
    {'accuracy': 0.0, 'open': 0.0, 'distribution': 0.01}
    """
    return Metric(name="accuracy", compute=gqa_scores)


def gqa_scores(
    answered: Sequence[Answered],
    settings: MetricSettings,
    *,
    attentions: Mapping[str, Sequence[Sequence[float]]] | None = None,
    scene_graphs: Mapping[str, Mapping[str, Json]] | None = None,
) -> Scores:
    """Compute what `gqa_metric` names; with attention maps also `grounding`.

    Args:
        answered: The questions; unbalanced ones serve `consistency` only, and have None in `per_sample`.
        settings: Not used: everything is computed in one pass.
        attentions: {question id: square attention map}.
        scene_graphs: {image id: scene graph}, with `attentions`; the reference must then hold "annotations".
    """
    balanced = [each for each in answered if each.sample.reference.get("is_balanced", True)]
    if not balanced:
        return Scores(unavailable={"accuracy": "no balanced question was answered"})
    correct = {each.sample.id: each.answer == each.sample.reference["answer"] for each in answered}
    columns: dict[str, _Column] = {
        "accuracy": {each.sample.id: float(correct[each.sample.id]) for each in balanced},
        "binary": _by_kind(balanced, correct, is_open=False),
        "open": _by_kind(balanced, correct, is_open=True),
        "validity": _among_choices(balanced, "valid"),
        "plausibility": _among_choices(balanced, "plausible"),
        "consistency": _consistency(balanced, correct),
        "grounding": "needs the model's attention maps and the scene graphs",
    }
    if attentions is not None and scene_graphs is not None:
        columns["grounding"] = {
            each.sample.id: grounding(
                attentions[each.sample.id],
                grounding_regions(each.sample.reference["annotations"], scene_graphs[each.sample.image_ids[0]]),
            )
            for each in balanced
        }
    aggregate: dict[str, float] = {}
    per_sample: dict[str, tuple[float | None, ...]] = {}
    unavailable: dict[str, str] = {}
    for name, column in columns.items():
        if isinstance(column, str):
            unavailable[name] = column
            continue
        counted = [value for value in column.values() if value is not None]
        if not counted:
            unavailable[name] = "no question counts towards it"
            continue
        aggregate[name] = math.fsum(counted) / len(counted)
        per_sample[name] = tuple(column.get(each.sample.id) for each in answered)
    distance = distribution(
        (_global_group(each.sample), each.sample.reference["answer"], each.answer) for each in balanced
    )
    if distance is None:
        unavailable["distribution"] = "no question has a global group"
    else:
        aggregate["distribution"] = distance
    return Scores(
        aggregate=aggregate, per_sample=per_sample, unavailable=unavailable, details=_breakdowns(balanced, correct)
    )


_Column: TypeAlias = dict[str, float | None] | str
"""{question id: value, or None where it does not count}; or why there is none."""


def _by_kind(balanced: Sequence[Answered], correct: Mapping[str, bool], *, is_open: bool) -> _Column:
    return {
        each.sample.id: float(correct[each.sample.id])
        for each in balanced
        if (kind := _type(each.sample, "structural")) is not None and (kind == "query") == is_open
    }


def _among_choices(balanced: Sequence[Answered], key: str) -> _Column:
    without = sum(each.sample.reference.get("choices") is None for each in balanced)
    if without:
        return f"{without} of {len(balanced)} questions have no entry in a choices file"
    return {
        each.sample.id: float(
            belongs(each.answer, each.sample.reference["choices"][key], detailed=_type(each.sample, "detailed") or "")
        )
        for each in balanced
    }


def _consistency(balanced: Sequence[Answered], correct: Mapping[str, bool]) -> _Column:
    entailed = {each.sample.id: each.sample.reference.get("entailed") or () for each in balanced}
    needed = {other for question, others in entailed.items() if correct[question] for other in others}
    if missing := sorted(needed - correct.keys()):
        return (
            f"needs the answers to all questions, unbalanced ones too: {len(missing)} entailed ones, such as "
            f"{missing[0]}, were not asked"
        )
    return {question: consistency(question, others, correct) for question, others in entailed.items()}


def _breakdowns(balanced: Sequence[Answered], correct: Mapping[str, bool]) -> dict[str, Json]:
    """Return the accuracy by type, length and steps, each table in the order of its keys."""
    keys: dict[str, Callable[[Sample], str | int | None]] = {
        "structural": lambda sample: _type(sample, "structural"),
        "semantic": lambda sample: _type(sample, "semantic"),
        "length": lambda sample: len(str(sample.fields["question"]).split()) if "question" in sample.fields else None,
        "steps": lambda sample: (
            num_steps(sample.reference["semantic"]) if sample.reference.get("semantic") is not None else None
        ),
    }
    tables: dict[str, Json] = {}
    for name, key in keys.items():
        counts: dict[Any, list[int]] = {}
        for each in balanced:
            if (value := key(each.sample)) is not None:
                right_all = counts.setdefault(value, [0, 0])
                right_all[0] += correct[each.sample.id]
                right_all[1] += 1
        if counts:
            tables[name] = {
                str(k): {"accuracy": counts[k][0] / counts[k][1], "n": counts[k][1]} for k in sorted(counts)
            }
    return tables


def _type(sample: Sample, kind: str) -> str | None:
    value: str | None = (sample.reference.get("types") or {}).get(kind)
    return value


def _global_group(sample: Sample) -> str | None:
    group: str | None = (sample.reference.get("groups") or {}).get("global")
    return group


def _overlap(start: float, end: float, other_start: float, other_end: float) -> float:
    """Return the share of [start, end] that the other interval covers."""
    return max(0.0, min(end, other_end) - max(start, other_start)) / (end - start)
