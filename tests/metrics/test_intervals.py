"""Intervals: the formula on cases known by hand, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.metrics.intervals import Interval, bootstrap_interval, clustered_mean_interval, t_quantile

# Student's t table (Fisher and Yates), upper 2.5 % and 0.5 %.
TABLE = {1: (12.706, 63.657), 2: (4.303, 9.925), 5: (2.571, 4.032), 10: (2.228, 3.169), 30: (2.042, 2.750), 120: (1.980, 2.617)}  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("degrees", TABLE)
def test_t_quantiles_equal_the_table(degrees: int) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(TABLE[degrees][0], abs=6e-4)
    assert t_quantile(0.995, degrees) == pytest.approx(TABLE[degrees][1], abs=6e-4)
    assert t_quantile(0.025, degrees) == -t_quantile(0.975, degrees)
    assert t_quantile(0.5, degrees) == pytest.approx(0, abs=1e-9)


@given(probability=st.floats(0.501, 0.9999))
def test_t_quantiles_of_one_and_two_degrees_have_a_formula(probability: float) -> None:
    assert t_quantile(probability, 1) == pytest.approx(math.tan(math.pi * (probability - 0.5)), rel=1e-7)
    centred = 2 * probability - 1
    assert t_quantile(probability, 2) == pytest.approx(centred * math.sqrt(2 / (1 - centred**2)), rel=1e-7)


def test_t_quantile_refuses_what_has_none() -> None:
    with pytest.raises(ValueError, match="out of range"):
        t_quantile(1.0, 5)
    with pytest.raises(ValueError, match="out of range"):
        t_quantile(0.5, 0)


def test_single_samples_give_the_textbook_interval() -> None:
    values = [0.1, 0.4, 0.35, 0.8]
    deviation = float(np.std(values, ddof=1))
    reach = 3.18245 * deviation / 2
    interval = clustered_mean_interval(values, range(4))
    assert interval == pytest.approx((np.mean(values) - reach, np.mean(values) + reach), abs=1e-5)


def test_copies_of_a_sample_add_nothing() -> None:
    one = clustered_mean_interval([0, 1, 1], "abc")
    copied = clustered_mean_interval([0] * 5 + [1] * 10, "a" * 5 + "b" * 5 + "c" * 5)
    naive = clustered_mean_interval([0] * 5 + [1] * 10, range(15))
    assert one is not None
    assert naive is not None
    assert copied == pytest.approx(one)
    assert naive.high - naive.low < 0.4 * (one.high - one.low)


def test_degenerate_cases() -> None:
    assert clustered_mean_interval([], []) is None
    assert clustered_mean_interval([None, None], "ab") is None
    assert clustered_mean_interval([0, 1], "aa") is None
    assert clustered_mean_interval([1, None], "ab") is None
    assert clustered_mean_interval([1, 1, 1], "abc") == Interval(1, 1)
    assert bootstrap_interval(len, [], seed=0) is None
    assert bootstrap_interval(len, "aa", seed=0) is None
    assert bootstrap_interval(lambda places: math.nan, "ab", seed=0) is None


def test_none_is_not_counted() -> None:
    assert clustered_mean_interval([0, None, 1, 1], "abcd") == clustered_mean_interval([0, 1, 1], "acd")


def test_clipped_only_if_asked() -> None:
    wide, clipped = (clustered_mean_interval([0, 1], "ab", clip=clip) for clip in (False, True))
    assert wide is not None
    assert wide.low < 0 < 1 < wide.high
    assert clipped == (0, 1)


def test_the_bootstrap_is_deterministic_and_draws_whole_clusters() -> None:
    clusters = list("aabbbcdd")
    seen = set()

    def statistic(places: np.ndarray) -> float:
        counts = np.bincount(places, minlength=8)
        seen.add((counts[0] == counts[1], counts[2] == counts[3] == counts[4], counts[6] == counts[7]))
        return float(places.sum())

    first = bootstrap_interval(statistic, clusters, seed=7, draws=50)
    assert first == bootstrap_interval(statistic, clusters, seed=7, draws=50)
    assert first != bootstrap_interval(statistic, clusters, seed=8, draws=50)
    assert seen == {(True, True, True)}


def simulated(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return answers to 1-9 questions on each of 40 images, some images being hard; the true mean is 0.6."""
    sizes = rng.integers(1, 10, size=40)
    images = np.repeat(np.arange(40), sizes)
    ease = rng.beta(1.2, 0.8, size=40)
    return (rng.random(len(images)) < ease[images]).astype(float), images


def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    clustered = naive = 0
    for _ in range(600):
        values, images = simulated(rng)
        for clusters in (images, range(len(values))):
            interval = clustered_mean_interval(values.tolist(), list(clusters))
            assert interval is not None
            covered = interval.low <= 0.6 <= interval.high
            clustered += covered and clusters is images
            naive += covered and clusters is not images
    assert 0.92 < clustered / 600 < 0.975
    assert naive / 600 < 0.85  # what it would be, were the questions independent


def test_the_bootstrap_covers_the_truth_nearly_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        values, images = simulated(rng)
        interval = bootstrap_interval(lambda places, v=values: v[places].mean(), images.tolist(), seed=3, draws=200)
        assert interval is not None
        covered += interval.low <= 0.6 <= interval.high
    assert 0.88 < covered / 200 < 0.985
