"""Referring expression comprehension: is the box the right one.

Boxes are (x1, y1, x2, y2) in pixels of the original image, with (x2, y2) = (x + width, y + height). Two conventions:

    continuous   QwenLM/Qwen-VL `eval_mm/evaluate_grounding.py`: areas of the plane, in single precision
    refer        lichengunc/refer `pyEvalDemo.ipynb` computeIoU: boxes as sets of pixels, the last one at x + width - 1

They differ by up to a row and a column of pixels, which decides small boxes; the one in use stands in the result.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence

from evalkit.errors import ConfigError, unknown
from evalkit.types import Answered, Metric, MetricSettings, Scores

CONVENTIONS = ("continuous", "refer")


def iou(a: Sequence[float], b: Sequence[float], *, convention: str) -> float:
    """Return the intersection of two boxes over their union.

    `continuous` computes in float32, as the script does, so that a box at the threshold falls on the same side.
    In `refer`, an intersection of one pixel's width or height counts as none (the notebook asks x1 < x2 of inclusive
    pixels): two equal boxes of 1 x 1 give 0.

    Args:
        a: Box (x1, y1, x2, y2). Its corners may be the wrong way round, infinite or NaN: a model may say anything.
        b: Box (x1, y1, x2, y2).
        convention: One of `CONVENTIONS`.

    Returns:
        The ratio; NaN where it is 0 / 0 or a corner is NaN, which counts as a miss. (At 0 / 0 the refer notebook stops
        with ZeroDivisionError.)

    Raises:
        ConfigError: The convention is not known.

    >>> iou((0, 0, 10, 10), (0, 0, 20, 10), convention="continuous")
    0.5
    >>> iou((0, 0, 10, 10), (9, 0, 19, 10), convention="continuous")  # 10 of 190
    0.05263157933950424
    >>> iou((0, 0, 10, 10), (9, 0, 19, 10), convention="refer")  # one column of pixels is no intersection here
    0.0
    """
    match convention:
        case "continuous":
            return _iou_continuous(a, b)
        case "refer":
            return _iou_refer(a, b)
    raise ConfigError(unknown("box convention", convention, CONVENTIONS))


def grounding_metric(convention: str = "continuous") -> Metric:
    """Return the metric of a grounding task: `Acc@0.5`, `mean_IoU` and `parsed`, fractions with a value a sample.

    The answer is a box or None, where no box could be read; the reference is {"box": [x1, y1, x2, y2]}. A box that
    could not be read has IoU 0 and is wrong; so is an IoU of 0 / 0. `parsed` is the share of boxes that could be read.

    Raises:
        ConfigError: The convention is not known.

    >>> from evalkit.types import Sample
    >>> sample = Sample(id="1", image_ids=("7",), reference={"box": [0, 0, 10, 10]})
    >>> grounding_metric().compute([Answered(sample=sample, answer=(0, 0, 10, 5))], MetricSettings()).aggregate
    {'Acc@0.5': 1.0, 'mean_IoU': 0.5, 'parsed': 1.0}
    """
    if convention not in CONVENTIONS:
        raise ConfigError(unknown("box convention", convention, CONVENTIONS))
    return Metric(name="Acc@0.5", compute=functools.partial(grounding_scores, convention=convention))


def grounding_scores(answered: Sequence[Answered], settings: MetricSettings, *, convention: str) -> Scores:
    """Compute what `grounding_metric` names."""
    if not answered:
        return Scores(unavailable={"Acc@0.5": "no sample was answered"})
    ious = [
        0.0 if each.answer is None else iou(each.answer, each.sample.reference["box"], convention=convention)
        for each in answered
    ]
    per_sample = {
        "Acc@0.5": tuple(float(value >= 0.5) for value in ious),
        "mean_IoU": tuple(0.0 if math.isnan(value) else value for value in ious),
        "parsed": tuple(float(each.answer is not None) for each in answered),
    }
    return Scores(
        aggregate={name: math.fsum(values) / len(values) for name, values in per_sample.items()},
        per_sample=per_sample,
        notes=(f"boxes compared by the {convention} convention",),
    )


def _iou_continuous(a: Sequence[float], b: Sequence[float]) -> float:
    ax1, ay1, ax2, ay2 = (_f32(value) for value in a)
    bx1, by1, bx2, by2 = (_f32(value) for value in b)
    if any(math.isnan(value) for value in (ax1, ay1, ax2, ay2, bx1, by1, bx2, by2)):
        return math.nan
    area_a = _f32(_f32(ax2 - ax1) * _f32(ay2 - ay1))
    area_b = _f32(_f32(bx2 - bx1) * _f32(by2 - by1))
    width = _at_least_0(_f32(min(ax2, bx2) - max(ax1, bx1)))
    height = _at_least_0(_f32(min(ay2, by2) - max(ay1, by1)))
    intersection = _f32(width * height)
    return _f32(_ratio(intersection, _f32(_f32(area_a + area_b) - intersection)))


def _iou_refer(a: Sequence[float], b: Sequence[float]) -> float:
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a, b
    left, top = max(ax1, bx1), max(ay1, by1)
    right, bottom = min(ax2, bx2) - 1, min(ay2, by2) - 1
    intersection = (right - left + 1) * (bottom - top + 1) if left < right and top < bottom else 0.0
    return _ratio(intersection, (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection)


def _ratio(intersection: float, union: float) -> float:
    """Divide as IEEE 754 does, without Python's exception."""
    if union:
        return intersection / union
    return math.copysign(math.inf, intersection) if intersection > 0 or intersection < 0 else math.nan


def _at_least_0(value: float) -> float:
    """Clamp, and let NaN through."""
    return 0.0 if value < 0 else value


def _f32(value: float) -> float:
    """Round to single precision; too large becomes infinite."""
    return ctypes.c_float(value).value
