"""MME: yes-or-no questions in pairs. Follows `eval_tool/calculation.py` of the MME release.

A sample's reference is {"task": "existence", "answer": "Yes" | "No"}, its first image the one the pair is about; the
answer is the model's text, not stripped: the official parser looks at its first four characters. None is "other".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

from evalkit.errors import MetricError
from evalkit.types import Answered, Metric, MetricSettings, Scores

Label: TypeAlias = Literal["yes", "no", "other"]

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


@dataclass(frozen=True, kw_only=True, slots=True)
class MmeTask:
    """The numbers of one task. Answers that are neither yes nor no are wrong, and in none of the four counts."""

    TP: int
    FN: int
    TN: int
    FP: int
    precision: float
    """Of "yes", among the answers that are yes or no; 0 where nothing was answered yes."""
    recall: float
    """Of "yes", among the answers that are yes or no; 0 where there is none to find."""
    other_num: int
    acc: float
    """Share of questions answered right."""
    acc_plus: float
    """Share of images with both questions answered right."""

    @property
    def score(self) -> float:
        """100 acc + 100 acc_plus: at most 200 points."""
        return 100 * self.acc + 100 * self.acc_plus


def mme_label(prediction: str) -> Label:
    """Return what the official parser reads: "yes", else "no", within the first four characters in lower case.

    >>> mme_label("Yes, it is."), mme_label("know"), mme_label("   no"), mme_label("A. yes")
    ('yes', 'no', 'other', 'other')
    """
    start = prediction.lower()[:4]
    if "yes" in start:
        return "yes"
    return "no" if "no" in start else "other"


def mme_task(images: Sequence[Sequence[tuple[str, str]]]) -> MmeTask:
    """Return the numbers of one task.

    Args:
        images: For each image its two questions, each as (right answer, prediction).

    Raises:
        MetricError: There is no image, an image has not two questions, or an answer is neither yes nor no.

    >>> task = mme_task([[("Yes", "yes"), ("No", "no")], [("Yes", "yes"), ("No", "yes")]])
    >>> task.acc, task.acc_plus, task.score
    (0.75, 0.5, 125.0)
    """
    if not images:
        raise MetricError("an MME task needs at least one image")
    pairs: list[tuple[str, Label]] = []
    both = 0
    for questions in images:
        if len(questions) != 2:
            raise MetricError(f"MME asks two questions an image, but one image has {len(questions)}")
        labels = [(answer.lower(), mme_label(prediction)) for answer, prediction in questions]
        both += all(answer == label for answer, label in labels)
        pairs += labels
    if wrong := {answer for answer, _ in pairs} - {"yes", "no"}:
        raise MetricError(f"MME answers are Yes or No, not {min(wrong)!r}")
    count = {key: pairs.count(key) for key in set(pairs)}
    tp, fn = count.get(("yes", "yes"), 0), count.get(("yes", "no"), 0)
    tn, fp = count.get(("no", "no"), 0), count.get(("no", "yes"), 0)
    return MmeTask(
        TP=tp, FN=fn, TN=tn, FP=fp, other_num=len(pairs) - tp - fn - tn - fp,
        precision=tp / (tp + fp) if tp + fp else 0.0, recall=tp / (tp + fn) if tp + fn else 0.0,
        acc=(tp + tn) / len(pairs), acc_plus=both / len(images),
    )  # fmt: skip


def mme_metric() -> Metric:
    """Return the metric of MME.

    `accuracy` (fraction, over all questions), the points of each task by its name, and the totals `perception` (at most
    2000) and `cognition` (at most 800), which need all their tasks. All numbers of a task are in `details`.

    >>> from evalkit.types import Sample
    >>> answered = [
    ...     Answered(sample=Sample(id=a, image_ids=("7",), reference={"task": "count", "answer": a}), answer="Yes")
    ...     for a in ("Yes", "No")
    ... ]
    >>> mme_metric().compute(answered, MetricSettings()).aggregate  # one of two right, no image with both right
    {'accuracy': 0.5, 'count': 50.0}
    """
    return Metric(name="mme", compute=mme_scores, independent=False)


def mme_scores(answered: Sequence[Answered], settings: MetricSettings) -> Scores:
    """Compute what `mme_metric` names.

    Raises:
        MetricError: An image has not two questions in its task, or an answer is neither yes nor no.
    """
    if not answered:
        return Scores(unavailable={"accuracy": "no sample was answered"})
    tasks: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for each in answered:
        images = tasks.setdefault(each.sample.reference["task"], {})
        images.setdefault(each.sample.image_ids[0], []).append((each.sample.reference["answer"], each.answer or ""))
    scored = {name: mme_task(list(images.values())) for name, images in sorted(tasks.items())}
    right = tuple(float(mme_label(each.answer or "") == each.sample.reference["answer"].lower()) for each in answered)
    aggregate = {"accuracy": math.fsum(right) / len(right)} | {name: task.score for name, task in scored.items()}
    unavailable = {}
    for total, names in (("perception", PERCEPTION), ("cognition", COGNITION)):
        if missing := [name for name in names if name not in scored]:
            unavailable[total] = f"needs the tasks {', '.join(missing)}"
        else:
            aggregate[total] = sum(scored[name].score for name in names)
    return Scores(
        aggregate=aggregate,
        per_sample={"accuracy": right},
        unavailable=unavailable,
        details={"tasks": {name: asdict(task) | {"score": task.score} for name, task in scored.items()}},
    )
