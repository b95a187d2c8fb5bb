"""ANLS and relaxed accuracy."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import ConfigError, MetricError
from evalkit.metrics.text import RELAXED_VARIANTS, anls, anls_metric, levenshtein, relaxed_accuracy, relaxed_metric
from evalkit.types import Answered, MetricSettings, Sample
from tests.strategies import any_text


def slow_levenshtein(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


@given(a=st.text("abc", max_size=90), b=st.text("abc", max_size=90))
def test_levenshtein_equals_the_table(a: str, b: str) -> None:
    assert levenshtein(a, b) == slow_levenshtein(a, b)


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("Hello   world", ["hello world"], 1.0), ("", [""], 1.0), ("", ["x"], 0.0), ("ab", ["abcd"], 0.5),
        ("strassen", ["straßen"], 0.75), ("x", ["abcdef", "x"], 1.0), ("  ab  ", ["abcd"], 1 - 2 / 6),
    ],
)  # fmt: skip
def test_anls(prediction: str, answers: list[str], score: float) -> None:
    assert anls(prediction, answers) == pytest.approx(score, abs=1e-12)


def test_long_answers_are_cheap() -> None:
    start = time.perf_counter()
    assert anls("ab" * 10_000, ["ba" * 10_000]) > 0.99
    assert anls("x" * 1_000_000, ["short"]) == 0
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("prediction", "target", "pix2struct", "qwen_vl"),
    [
        ("105", "100", 1, 1), ("106", "100", 0, 0), ("95.1", "100", 1, 0), ("0", "0", 1, 1), ("0.0", "0", 0, 0),
        ("12%", "0.12", 1, 1), ("12", "12%", 0, 0), ("1,000", "1000", 0, 0), (" Yes", "yes", 0, 1), ("nan", "5", 0, 0),
    ],
)  # fmt: skip
def test_relaxed_accuracy(prediction: str, target: str, pix2struct: float, qwen_vl: float) -> None:
    assert relaxed_accuracy(prediction, [target]) == pix2struct
    assert relaxed_accuracy(prediction, [target], variant="qwen_vl") == qwen_vl


def test_the_best_of_several_targets_counts() -> None:
    assert relaxed_accuracy("5", ["red", "5"]) == 1


def test_errors() -> None:
    with pytest.raises(MetricError, match="at least one right answer"):
        anls("x", [])
    with pytest.raises(MetricError, match="at least one right answer"):
        relaxed_accuracy("x", [])
    with pytest.raises(ConfigError, match="no relaxed accuracy variant 'qwen'; did you mean 'qwen_vl'"):
        relaxed_accuracy("x", ["x"], variant="qwen")
    with pytest.raises(ConfigError, match="no relaxed accuracy variant"):
        relaxed_metric("qwen")


def test_metrics_are_means_with_a_value_a_sample() -> None:
    samples = [Sample(id=str(i), image_ids=("7",), reference={"answers": ["100"]}) for i in range(2)]
    answered = [Answered(sample=sample, answer=text) for sample, text in zip(samples, ["100", "x"], strict=True)]
    for metric, name in ((anls_metric(), "anls"), (relaxed_metric(), "relaxed_accuracy")):
        scores = metric.compute(answered, MetricSettings())
        assert scores.aggregate == {name: 0.5}
        assert scores.per_sample == {name: (1.0, 0.0)}
        assert metric.compute([], MetricSettings()).unavailable.keys() == {name}


def test_no_answer_is_wrong_and_a_box_is_no_text() -> None:
    sample = Sample(id="5", image_ids=("7",), reference={"answers": [""]})
    for metric, name in ((anls_metric(), "anls"), (relaxed_metric(), "relaxed_accuracy")):
        assert metric.compute([Answered(sample=sample, answer=None)], MetricSettings()).aggregate == {name: 0}
        scores = metric.compute([Answered(sample=sample, answer=(1, 2, 3, 4))], MetricSettings())
        assert "question 5" in scores.unavailable[name]


@given(prediction=any_text, answers=st.lists(any_text, min_size=1, max_size=3))
def test_no_string_crashes_them(prediction: str, answers: list[str]) -> None:
    assert 0 <= anls(prediction, answers) <= 1
    for variant in RELAXED_VARIANTS:
        assert relaxed_accuracy(prediction, answers, variant=variant) in (0, 1)


@given(text=any_text)
def test_the_right_answer_is_right(text: str) -> None:
    assert anls(text, ["else", text]) == 1
    try:
        is_finite = math.isfinite(float(text.rstrip("%")))
    except ValueError:
        is_finite = True
    # Nothing is near infinity or NaN, they themselves neither.
    assert relaxed_accuracy(text, ["else", text]) == float(is_finite)
