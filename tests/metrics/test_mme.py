"""MME: pairs of questions, the parser's four characters, the totals."""

from __future__ import annotations

import random

import pytest
from hypothesis import given

from evalkit.errors import MetricError
from evalkit.metrics.mme import COGNITION, PERCEPTION, mme_label, mme_metric, mme_task
from evalkit.types import Answered, MetricSettings, Sample
from tests.strategies import any_text


def pair(task: str, image: str, *predictions: str) -> list[Answered]:
    return [
        Answered(
            sample=Sample(
                id=f"{task}/{image}/{answer}", image_ids=(image,), reference={"task": task, "answer": answer}
            ),
            answer=prediction,
        )
        for answer, prediction in zip(("Yes", "No"), predictions, strict=True)
    ]


def test_points_of_a_task() -> None:
    task = mme_task([[("Yes", "yes"), ("No", "no")], [("Yes", "Maybe"), ("No", "Yes")]])
    assert (task.TP, task.FN, task.TN, task.FP, task.other_num) == (1, 0, 1, 1, 1)
    assert (task.precision, task.recall, task.acc, task.acc_plus) == (0.5, 1.0, 0.5, 0.5)
    assert task.score == 100


def test_totals_need_all_their_tasks() -> None:
    answered = [each for task in PERCEPTION for each in pair(task, "1", "yes", "no")]
    scores = mme_metric().compute(answered, MetricSettings())
    assert scores.aggregate["perception"] == 2000
    assert scores.aggregate["accuracy"] == 1
    assert "cognition" not in scores.aggregate
    assert scores.unavailable["cognition"] == f"needs the tasks {', '.join(COGNITION)}"
    assert scores.details["tasks"]["OCR"]["score"] == scores.aggregate["OCR"] == 200


def test_an_image_of_two_tasks_is_two_pairs() -> None:
    answered = pair("count", "1", "yes", "no") + pair("color", "1", "no", "no")
    scores = mme_metric().compute(answered, MetricSettings())
    assert (scores.aggregate["count"], scores.aggregate["color"]) == (200, 50)


def test_order_changes_nothing() -> None:
    answered = [
        each for task in ("count", "color") for i in range(4) for each in pair(task, str(i), "yes", "no" * (i % 2))
    ]
    shuffled = random.Random(0).sample(answered, len(answered))
    one, other = (mme_metric().compute(each, MetricSettings()) for each in (answered, shuffled))
    assert one.aggregate == other.aggregate


def test_errors() -> None:
    with pytest.raises(MetricError, match="two questions an image, but one image has 1"):
        mme_metric().compute(pair("count", "1", "yes", "no")[:1], MetricSettings())
    with pytest.raises(MetricError, match="not 'maybe'"):
        mme_task([[("Yes", "yes"), ("Maybe", "no")]])
    with pytest.raises(MetricError, match="at least one image"):
        mme_task([])


@given(text=any_text)
def test_no_string_crashes_the_parser(text: str) -> None:
    assert mme_label(text) in ("yes", "no", "other")
