"""Confidence intervals for scores whose samples are not independent.

Questions about one image rise and fall together, so the unit of chance is the image (the cluster), not the question.
A mean has a formula; what is no mean (CIDEr over a resampled corpus, a mean of two recalls) is bootstrapped by cluster.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Interval(NamedTuple):
    """A confidence interval in the units of the score."""

    low: float
    high: float


def clustered_mean_interval(
    values: Sequence[float | None], clusters: Sequence[Hashable], level: float = 0.95, *, clip: bool = False
) -> Interval | None:
    """Return the interval of a mean over samples that come in clusters of any size.

    The mean is a ratio of two sums over clusters, and its variance is linearised: G / (G - 1) * sum_g (sum_{i in g}
    (v_i - mean))^2 / n^2, with the t quantile of G - 1 degrees of freedom (Cochran, Sampling Techniques, 3rd ed., 9A;
    the cluster-robust variance CR1 of a regression on a constant).

    Args:
        values: One a sample; None is not counted.
        clusters: What the sample belongs to, in the same order; usually the image id.
        level: Confidence level.
        clip: Cut the interval at 0 and 1.

    Returns:
        None where there is no telling: no value, or a single cluster. Where all values are equal, the interval is that
        point.

    >>> low, high = clustered_mean_interval([0, 1, 0, 1], "abcd")  # 0.5 -+ 3.182 * sqrt(1/3) / sqrt(4)
    >>> round(low, 3), round(high, 3)
    (-0.419, 1.419)
    >>> clustered_mean_interval([0, 1, 0, 1], "aabb")  # both images say 0.5: nothing varies between them
    Interval(low=0.5, high=0.5)
    >>> clustered_mean_interval([0, 1, 0, 1], "aaaa") is None
    True
    """
    sums: dict[Hashable, float] = {}
    counts: dict[Hashable, int] = {}
    for value, cluster in zip(values, clusters, strict=True):
        if value is not None:
            sums[cluster] = sums.get(cluster, 0.0) + value
            counts[cluster] = counts.get(cluster, 0) + 1
    num_clusters = len(sums)
    if num_clusters < 2:
        return None
    num_values = sum(counts.values())
    mean = math.fsum(sums.values()) / num_values
    squares = math.fsum((sums[cluster] - counts[cluster] * mean) ** 2 for cluster in sums)
    error = math.sqrt(num_clusters / (num_clusters - 1) * squares) / num_values
    reach = t_quantile((1 + level) / 2, num_clusters - 1) * error
    return _interval(mean - reach, mean + reach, clip=clip)


def bootstrap_interval(
    statistic: Callable[[NDArray[np.intp]], float],
    clusters: Sequence[Hashable],
    *,
    seed: int,
    draws: int = 1000,
    level: float = 0.95,
    clip: bool = False,
) -> Interval | None:
    """Return the percentile interval of a statistic over clusters drawn with replacement.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), 13.3, with whole clusters as the units.

    Args:
        statistic: Given the places (N,) of the samples drawn, some of them repeatedly, returns the statistic; NaN where
            a draw does not define it, which is then left out.
        clusters: What each sample belongs to; a cluster is drawn with all its samples.
        seed: Of the draws; the same seed gives the same interval.
        draws: How many.
        level: Confidence level.
        clip: Cut the interval at 0 and 1.

    Returns:
        None with fewer than two clusters, or where no draw defines the statistic.

    >>> bootstrap_interval(lambda places: float(len(places)), ["a", "b", "c"], seed=0)  # whatever is drawn, three
    Interval(low=3.0, high=3.0)
    """
    import numpy as np

    cluster_of_sample = np.array(_numbered(clusters), dtype=np.intp)
    order = np.argsort(cluster_of_sample, kind="stable")
    sizes = np.bincount(cluster_of_sample)
    if len(sizes) < 2:
        return None
    starts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        chosen = rng.integers(len(sizes), size=len(sizes))
        drawn = sizes[chosen]
        # For each cluster drawn: its start, then one more for each further sample.
        within = np.arange(drawn.sum()) - np.repeat(np.cumsum(drawn) - drawn, drawn)
        value = statistic(order[np.repeat(starts[chosen], drawn) + within])
        if not math.isnan(value):
            found.append(value)
    if not found:
        return None
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return _interval(float(low), float(high), clip=clip)


@functools.lru_cache(maxsize=1024)
def t_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution.

    Args:
        probability: Above 0 and below 1.
        degrees: Degrees of freedom, at least 1.

    Raises:
        ValueError: An argument is out of range.

    >>> round(t_quantile(0.975, 1), 3), round(t_quantile(0.975, 10), 3), round(t_quantile(0.975, 10**6), 3)
    (12.706, 2.228, 1.96)
    """
    if not 0 < probability < 1 or degrees < 1:
        raise ValueError(f"t_quantile({probability}, {degrees}): the arguments are out of range")
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    # The normal quantile is a lower bound for the t quantile; double until it is bracketed, then halve.
    low, high = 0.0, max(1.0, NormalDist().inv_cdf(probability))
    while _t_upper_tail(high, degrees) > 1 - probability:
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if _t_upper_tail(middle, degrees) > 1 - probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _numbered(clusters: Sequence[Hashable]) -> list[int]:
    """Return a number for each cluster, counted from its first appearance."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]


def _t_upper_tail(t: float, degrees: int) -> float:
    """Return P(T > t) for t >= 0: half the regularised incomplete beta function at degrees / (degrees + t^2)."""
    return 0.5 * _regularised_beta(degrees / (degrees + t * t), degrees / 2, 0.5)


def _regularised_beta(x: float, a: float, b: float) -> float:
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    # The continued fraction converges fast on this side only (Abramowitz and Stegun 26.5.8).
    if x > (a + 1) / (a + b + 2):
        return 1 - _regularised_beta(1 - x, b, a)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(logarithm) / a * _beta_fraction(x, a, b)


def _beta_fraction(x: float, a: float, b: float) -> float:
    """Evaluate 1 / (1 + d1 / (1 + d2 / (1 + ...))) from the front, by Lentz's rule."""
    tiny = 1e-300
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), tiny)
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = 1.0
        for term in (even, odd):
            d = 1 / ((1 + term * d) or tiny)
            c = (1 + term / c) or tiny
            change = c * d
            value *= change
        if abs(change - 1) < 1e-15:
            break
    return value


def _interval(low: float, high: float, *, clip: bool) -> Interval:
    return Interval(min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0)) if clip else Interval(low, high)
