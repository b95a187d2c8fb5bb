"""Image-text retrieval: recall from candidate pairs, by ITC alone and re-ranked by ITM.

Follows salesforce/LAVIS `blip2_models/blip2.py` compute_sim_matrix and `tasks/retrieval.py` _report_metrics (BLIP's
`train_retrieval.py` itm_eval gives the same recalls), without their dense matrices: what comes in is a list of pairs
per image, the union of its own top k texts and of the texts that have it among their own top k images, by ITC. Which of
the two a pair came from follows from its ITC value: images are ranked by the pairs in a text's top k only, texts by
those in an image's top k only, and a pair outside the candidates is a miss. So the fusion rule can be changed without a
model. Equal scores keep the order of the texts as given, and of the image ids.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from evalkit.errors import ConfigError, MetricError, ResultsError, unknown
from evalkit.metrics.intervals import bootstrap_interval, clustered_mean_interval
from evalkit.types import Answered, Metric, MetricSettings, Scores, Text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FUSIONS = ("itm+itc", "itm", "itc")
CUTOFFS = (1, 5, 10)

Direction: TypeAlias = Literal["i2t", "t2i"]
Pair: TypeAlias = tuple[str, float, float | None]
"""(text id, ITC, ITM or None)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """Recall in both directions, and the ranks it comes from."""

    i2t: Mapping[int, float]
    """{k: share of images with one of their texts among the first k}."""
    t2i: Mapping[int, float]
    """{k: share of texts with one of their images among the first k}."""
    i2t_ranks: Mapping[str, int | None]
    """{image id: rank of the best of its texts, from 0; None where none is a candidate}."""
    t2i_ranks: Mapping[str, int | None]
    """{text id: rank of the best of its images, from 0; None where none is a candidate}."""

    @property
    def mean(self) -> float:
        """The mean of both means, LAVIS's r_mean."""
        return sum(self.i2t.values()) / len(self.i2t) / 2 + sum(self.t2i.values()) / len(self.t2i) / 2


def recall_at_k(
    pairs: Mapping[str, Sequence[Pair]],
    texts: Sequence[Text],
    *,
    k: int = 0,
    fusion: str = "itm+itc",
    cutoffs: Sequence[int] = CUTOFFS,
) -> Recall:
    """Return recall at each cutoff, image to text and text to image.

    Args:
        pairs: {image id: its candidates}. Every image here is counted.
        texts: All candidate texts, each with the images it was written for. A text is counted if one of its images is
            in `pairs`.
        k: Candidates in each direction that the pairs were made with; 0: every pair counts both ways. A cutoff above k
            misses what was never a candidate.
        fusion: "itm+itc" (LAVIS, BLIP) or "itm", over the k candidates; "itc" needs no ITM.
        cutoffs: Ranks to stop at.

    Raises:
        ConfigError: The fusion rule is not known.
        ResultsError: A pair names a text that is not there, stands twice, or lacks the ITM score that is asked for.
        MetricError: There are no texts.

    >>> texts = [Text(id="a", text="", image_ids=("1",)), Text(id="b", text="", image_ids=("2",))]
    >>> pairs = {"1": [("a", 0.9, -1.0), ("b", 0.8, 2.0)], "2": [("a", 0.1, 0.0), ("b", 0.7, 3.0)]}
    >>> recall_at_k(pairs, texts, fusion="itc", cutoffs=[1]).i2t, recall_at_k(pairs, texts, cutoffs=[1]).i2t
    ({1: 1.0}, {1: 0.5})
    >>> recall_at_k(pairs, texts, fusion="itc", cutoffs=[1]).t2i  # image 1 comes first for text b
    {1: 0.5}
    >>> recall_at_k(pairs, texts, k=1, cutoffs=[1]).i2t  # text b is not among the one candidate of image 1
    {1: 1.0}
    """
    return _recall(_table(pairs, texts), k=k, fusion=fusion, cutoffs=cutoffs)


def ranked_candidates(
    pairs: Mapping[str, Sequence[Pair]],
    texts: Sequence[Text],
    *,
    direction: Direction,
    k: int = 0,
    fusion: str = "itm+itc",
) -> dict[str, list[tuple[str, float]]]:
    """Return {query id: its candidates with their scores, best first}; the arguments are those of `recall_at_k`.

    >>> texts = [Text(id="a", text="", image_ids=("1",)), Text(id="b", text="", image_ids=("2",))]
    >>> ranked_candidates({"1": [("a", 0.5, -1.0), ("b", 0.25, 2.0)]}, texts, direction="i2t")
    {'1': [('b', 2.25), ('a', -0.5)]}
    """
    table = _table(pairs, texts)
    rows, _, scores = _ranked(table, direction, k=k, fusion=fusion)
    queries, candidates = (table.images, table.texts) if direction == "i2t" else (table.texts, table.images)
    query, candidate = _ends(table, direction)
    lists: dict[str, list[tuple[str, float]]] = {each: [] for each in queries}
    for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
        lists[queries[query[row]]].append((candidates[candidate[row]], score))
    return lists


def retrieval_metric(fusion: str = "itm+itc") -> Metric:
    """Return the metric of a retrieval task.

    The answer is the list of pairs of an image, the sample's id the image id; the texts and the k that the pairs were
    made with are in the settings. Fractions: `i2t_R@1`, `i2t_R@5`, `i2t_R@10`, `t2i_R@...` and `r_mean`, re-ranked
    where the pairs have ITM scores; and each with `[itc]`, by ITC alone. Where no pair has one, both are by ITC, and
    `Scores.variant` says so. A cutoff beyond k is in `unavailable`.

    Raises:
        ConfigError: The fusion rule is not known.

    >>> from evalkit.types import Sample
    >>> texts = (Text(id="a", text="", image_ids=("1",)), Text(id="b", text="", image_ids=("2",)))
    >>> pairs = {"1": [("a", 0.9, 0.0), ("b", 0.8, 2.0)], "2": [("a", 0.1, 0.0), ("b", 0.7, 3.0)]}
    >>> answered = [Answered(sample=Sample(id=i, image_ids=(i,)), answer=each) for i, each in pairs.items()]
    >>> scores = retrieval_metric().compute(answered, MetricSettings(texts=texts))
    >>> scores.aggregate["i2t_R@1"], scores.aggregate["i2t_R@1[itc]"]
    (0.5, 1.0)
    """
    if fusion not in FUSIONS:
        raise ConfigError(unknown("fusion rule", fusion, FUSIONS))
    return Metric(name="recall", compute=functools.partial(retrieval_scores, fusion=fusion), independent=False)


def retrieval_scores(answered: Sequence[Answered], settings: MetricSettings, *, fusion: str) -> Scores:
    """Compute what `retrieval_metric` names.

    `per_sample` has the values of the images; those of the texts too (their mean over each image) where all images have
    equally many texts, so that the mean over images is the recall. `intervals` has those of the texts, clustered by
    image, and of the means, bootstrapped by image.

    Raises:
        ResultsError: A pair names a text that is not there or stands twice, or only some pairs have ITM scores.
    """
    if not answered:
        return Scores(unavailable={"recall": "no sample was answered"})
    table = _table({each.sample.id: each.answer for each in answered}, settings.texts)
    if table.num_without_itm == len(table.itc):
        fusion = "itc"
    parts = [
        _scores(table, answered, settings, fusion=fusion, suffix=""),
        _scores(table, answered, settings, fusion="itc", suffix="[itc]"),
    ]
    return Scores(
        aggregate={name: value for part in parts for name, value in part.aggregate.items()},
        per_sample={name: values for part in parts for name, values in part.per_sample.items()},
        intervals={name: interval for part in parts for name, interval in part.intervals.items()},
        unavailable={name: reason for part in parts for name, reason in part.unavailable.items()},
        variant=fusion,
    )


def _scores(
    table: _Table, answered: Sequence[Answered], settings: MetricSettings, *, fusion: str, suffix: str
) -> Scores:
    import numpy as np

    recall = _recall(table, k=settings.k, fusion=fusion, cutoffs=CUTOFFS)
    images = [each.sample.id for each in answered]
    texts_of: dict[str, list[str]] = {image: [] for image in images}
    for text in settings.texts:
        if text.id in recall.t2i_ranks:
            texts_of[next(image for image in text.image_ids if image in texts_of)].append(text.id)
    aggregate: dict[str, float] = {}
    per_sample: dict[str, tuple[float | None, ...]] = {}
    intervals: dict[str, tuple[float, float]] = {}
    unavailable: dict[str, str] = {}
    i2t_KI, t2i_KI = [], []
    for cutoff in CUTOFFS:
        name = f"i2t_R@{cutoff}{suffix}"
        hits = [_hit(recall.i2t_ranks[image], cutoff) for image in images]
        i2t_KI.append(hits)
        if 0 < settings.k < min(cutoff, len(settings.texts)):
            unavailable[name] = _too_few(settings.k, cutoff)
        else:
            aggregate[name], per_sample[name] = recall.i2t[cutoff], tuple(hits)
        name = f"t2i_R@{cutoff}{suffix}"
        text_hits = [[_hit(recall.t2i_ranks[text], cutoff) for text in texts] for texts in texts_of.values()]
        t2i_KI.append([sum(each) for each in text_hits])
        if 0 < settings.k < min(cutoff, len(images)):
            unavailable[name] = _too_few(settings.k, cutoff)
            continue
        aggregate[name] = recall.t2i[cutoff]
        if len({len(each) for each in text_hits}) == 1 and text_hits[0]:
            per_sample[name] = tuple(sum(each) / len(each) for each in text_hits)
        interval = clustered_mean_interval(
            [hit for each in text_hits for hit in each], [image for image in images for _ in texts_of[image]]
        )
        if interval is not None:
            intervals[name] = (interval.low, interval.high)
    name = f"r_mean{suffix}"
    if unavailable:
        unavailable[name] = "needs the recall at all cutoffs"
    else:
        aggregate[name] = recall.mean
        num_texts_I = np.array([len(texts) for texts in texts_of.values()], dtype=np.float64)
        statistic = functools.partial(_mean_recall, np.array(i2t_KI), np.array(t2i_KI), num_texts_I)
        interval = bootstrap_interval(statistic, images, seed=0)
        if interval is not None:
            intervals[name] = (interval.low, interval.high)
    return Scores(aggregate=aggregate, per_sample=per_sample, intervals=intervals, unavailable=unavailable)


def _too_few(k: int, cutoff: int) -> str:
    return f"only {k} candidates were kept in each direction; it needs a run with k={cutoff} or more"


def _mean_recall(
    i2t_KI: NDArray[np.float64], t2i_KI: NDArray[np.float64], num_texts_I: NDArray[np.float64], places: NDArray[np.intp]
) -> float:
    """Return r_mean over these images: hits of the images, sums of the hits of their texts, numbers of texts."""
    num_texts = num_texts_I[places].sum()
    if num_texts == 0:
        return float("nan")
    return float(i2t_KI[:, places].mean() / 2 + (t2i_KI[:, places].sum(axis=1) / num_texts).mean() / 2)


def _hit(rank: int | None, cutoff: int) -> float:
    return float(rank is not None and rank < cutoff)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    """All pairs as columns, P of them."""

    images: list[str]
    """Image ids in the order of ties."""
    texts: list[str]
    place: Mapping[str, int]
    """{image id: its place in `images`}."""
    image_P: NDArray[np.int64]
    text_P: NDArray[np.int64]
    itc: NDArray[np.float64]
    itm: NDArray[np.float64]
    num_without_itm: int
    right_P: NDArray[np.bool_]
    """Whether the text was written for the image."""
    counted_texts: NDArray[np.bool_]
    """Whether one of the text's images is there."""


def _table(pairs: Mapping[str, Sequence[Pair]], texts: Sequence[Text]) -> _Table:
    import numpy as np

    if not texts:
        raise MetricError("recall needs the candidate texts, but this dataset has none")
    images = sorted(pairs, key=lambda image: (len(image), image))
    place = {image: i for i, image in enumerate(images)}
    text_ids = [text.id for text in texts]
    text_place = {text: i for i, text in enumerate(text_ids)}
    image_P = np.repeat(np.arange(len(images)), [len(pairs[image]) for image in images])
    text_P = np.array([text_place.get(pair[0], -1) for image in images for pair in pairs[image]], dtype=np.int64)
    if (text_P < 0).any():
        row = int(np.argmin(text_P))
        image = images[image_P[row]]
        lost = next(pair[0] for pair in pairs[image] if pair[0] not in text_place)
        raise ResultsError(f"the pairs of image {image} name text {lost!r}, which is not among the {len(texts)} texts")
    key_P = image_P * len(texts) + text_P
    unique, counts = np.unique(key_P, return_counts=True)
    if len(unique) < len(key_P):
        image_place, twice = divmod(int(unique[np.argmax(counts)]), len(texts))
        raise ResultsError(f"text {text_ids[twice]!r} stands twice in the pairs of image {images[image_place]}")
    itms: list[Any] = [pair[2] for image in images for pair in pairs[image]]
    right = [
        place[image] * len(texts) + i for i, text in enumerate(texts) for image in text.image_ids if image in place
    ]
    return _Table(
        images=images,
        texts=text_ids,
        place=place,
        image_P=image_P,
        text_P=text_P,
        itc=np.array([pair[1] for image in images for pair in pairs[image]], dtype=np.float64),
        itm=np.array(itms, dtype=np.float64),  # None becomes NaN
        num_without_itm=sum(itm is None for itm in itms),
        right_P=np.isin(key_P, np.array(right, dtype=np.int64)),
        counted_texts=np.array([any(image in place for image in text.image_ids) for text in texts], dtype=bool),
    )


def _recall(table: _Table, *, k: int, fusion: str, cutoffs: Sequence[int]) -> Recall:
    import numpy as np

    ranks: dict[str, dict[str, int | None]] = {}
    for direction in ("i2t", "t2i"):
        rows, rank_R, _ = _ranked(table, direction, k=k, fusion=fusion)
        query, _ = _ends(table, direction)
        queries = table.images if direction == "i2t" else table.texts
        never = len(table.itc)
        best = np.full(len(queries), never, dtype=np.int64)
        right = table.right_P[rows]
        np.minimum.at(best, query[rows[right]], rank_R[right])
        counted = np.ones(len(queries), dtype=bool) if direction == "i2t" else table.counted_texts
        ranks[direction] = {
            queries[i]: None if best[i] == never else int(best[i]) for i in np.flatnonzero(counted).tolist()
        }
    shares = {
        direction: {
            cutoff: sum(rank is not None and rank < cutoff for rank in found.values()) / len(found) if found else 0.0
            for cutoff in cutoffs
        }
        for direction, found in ranks.items()
    }
    return Recall(i2t=shares["i2t"], t2i=shares["t2i"], i2t_ranks=ranks["i2t"], t2i_ranks=ranks["t2i"])


def _ranked(
    table: _Table, direction: Direction, *, k: int, fusion: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the pairs within the queries' top k, best first within each query, with their ranks and scores."""
    import numpy as np

    if fusion not in FUSIONS:
        raise ConfigError(unknown("fusion rule", fusion, FUSIONS))
    query, candidate = _ends(table, direction)
    everything = np.arange(len(query))
    rows, ranks = _sorted(everything, table.itc, query, candidate)
    if fusion == "itc":
        return rows, ranks, table.itc[rows]
    if table.num_without_itm:
        raise ResultsError(
            f"{table.num_without_itm} of {len(query)} pairs have no ITM score, which re-ranking by {fusion} needs"
        )
    chosen = np.sort(rows[ranks < k]) if k else everything
    scores = table.itm + table.itc if fusion == "itm+itc" else table.itm
    rows, ranks = _sorted(chosen, scores[chosen], query[chosen], candidate[chosen])
    return rows, ranks, scores[rows]


def _sorted(
    rows: NDArray[np.int64], scores: NDArray[np.float64], query: NDArray[np.int64], candidate: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sort by query, then falling score (NaN last), then candidate; return the rows and their ranks in the query."""
    import numpy as np

    order = np.lexsort((candidate, -scores, query))
    groups = query[order]
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if len(groups) else np.zeros(0, dtype=np.int64)
    sizes = np.diff(np.r_[starts, len(groups)])
    return rows[order], np.arange(len(groups)) - np.repeat(starts, sizes)


def _ends(table: _Table, direction: Direction) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return (table.image_P, table.text_P) if direction == "i2t" else (table.text_P, table.image_P)
