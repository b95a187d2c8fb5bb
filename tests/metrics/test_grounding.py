"""Boxes: the two conventions at their edges, and what cannot be read."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import ConfigError
from evalkit.metrics.grounding import CONVENTIONS, grounding_metric, iou
from evalkit.types import Answered, MetricSettings, Sample

Box = tuple[float, float, float, float]

numbers = st.floats(allow_nan=True, allow_infinity=True)
any_box = st.tuples(numbers, numbers, numbers, numbers)


@st.composite
def proper_boxes(draw: st.DrawFn) -> Box:
    x, y = draw(st.integers(0, 600)), draw(st.integers(0, 600))
    return x, y, x + draw(st.integers(2, 400)), y + draw(st.integers(2, 400))


def asked(answer: Any, box: Any = (0, 0, 10, 10), sample_id: str = "1") -> Answered:
    return Answered(sample=Sample(id=sample_id, image_ids=("7",), reference={"box": list(box)}), answer=answer)


def test_conventions_differ_by_a_pixel() -> None:
    one_pixel = (5, 5, 6, 6)
    assert iou(one_pixel, one_pixel, convention="continuous") == 1
    assert iou(one_pixel, one_pixel, convention="refer") == 0
    assert iou((0, 0, 10, 10), (8, 0, 18, 10), convention="refer") == pytest.approx(20 / 180)


def test_nothing_over_nothing_is_a_miss() -> None:
    for convention in CONVENTIONS:
        assert math.isnan(iou((3, 3, 3, 3), (3, 3, 3, 3), convention=convention))
    scores = grounding_metric().compute([asked((3, 3, 3, 3), (3, 3, 3, 3))], MetricSettings())
    assert scores.aggregate == {"Acc@0.5": 0, "mean_IoU": 0, "parsed": 1}


def test_exactly_half_is_right() -> None:
    scores = grounding_metric().compute([asked((0, 0, 10, 5))], MetricSettings())
    assert scores.aggregate["Acc@0.5"] == 1


def test_what_could_not_be_read_is_wrong_and_counted() -> None:
    answered = [asked(None), asked([0, 0, 10, 10], sample_id="2")]
    scores = grounding_metric("refer").compute(answered, MetricSettings())
    assert scores.aggregate == {"Acc@0.5": 0.5, "mean_IoU": 0.5, "parsed": 0.5}
    assert scores.per_sample["parsed"] == (0.0, 1.0)
    assert "refer" in scores.notes[0]


def test_errors_and_nothing_answered() -> None:
    with pytest.raises(ConfigError, match="no box convention 'xywh'"):
        iou((0, 0, 1, 1), (0, 0, 1, 1), convention="xywh")
    with pytest.raises(ConfigError, match="no box convention"):
        grounding_metric("xywh")
    assert "Acc@0.5" in grounding_metric().compute([], MetricSettings()).unavailable


@given(a=any_box, b=any_box, convention=st.sampled_from(CONVENTIONS))
def test_no_box_crashes_it(a: Box, b: Box, convention: str) -> None:
    assert isinstance(iou(a, b, convention=convention), float)


@given(a=proper_boxes(), b=proper_boxes(), convention=st.sampled_from(CONVENTIONS))
def test_it_is_symmetric_between_0_and_1_and_1_for_the_same(a: Box, b: Box, convention: str) -> None:
    overlap = iou(a, b, convention=convention)
    assert 0 <= overlap <= 1
    assert overlap == iou(b, a, convention=convention)
    assert iou(a, a, convention=convention) == 1


@given(boxes=st.lists(st.none() | proper_boxes(), min_size=1, max_size=8), seed=st.integers(0, 100))
def test_order_changes_nothing(boxes: list[Box | None], seed: int) -> None:
    answered = [asked(box, sample_id=str(i)) for i, box in enumerate(boxes)]
    shuffled = random.Random(seed).sample(answered, len(answered))
    one, other = (grounding_metric().compute(each, MetricSettings()) for each in (answered, shuffled))
    assert one.aggregate == other.aggregate
