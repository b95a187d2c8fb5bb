"""Recall from candidate pairs, against the dense two-matrix protocol."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.errors import ConfigError, MetricError, ResultsError
from evalkit.metrics.retrieval import Pair, ranked_candidates, recall_at_k, retrieval_metric
from evalkit.types import Answered, MetricSettings, Sample, Text

Pairs = dict[str, list[Pair]]


def texts_for(numbers: Sequence[int]) -> list[Text]:
    """Return texts, numbers[i] of them for image i."""
    images = [str(image) for image, number in enumerate(numbers) for _ in range(number)]
    return [Text(id=f"t{i}", text="", image_ids=(image,)) for i, image in enumerate(images)]


def top(scores: np.ndarray, k: int) -> set[int]:
    return set(np.argsort(-scores, kind="stable")[:k].tolist())


def candidates(itc_IT: np.ndarray, itm_IT: np.ndarray, k: int) -> Pairs:
    num_images, num_texts = itc_IT.shape
    return {
        str(i): [
            (f"t{j}", float(itc_IT[i, j]), float(itm_IT[i, j]))
            for j in range(num_texts)
            if j in top(itc_IT[i], k) or i in top(itc_IT[:, j], k)
        ]
        for i in range(num_images)
    }


def dense_recall(scores: np.ndarray, right: list[set[int]], cutoff: int) -> float:
    """The official way: a matrix of queries by candidates, -inf outside the top k."""
    hits = 0
    for row, wanted in zip(scores, right, strict=True):
        order = [j for j in np.argsort(-row, kind="stable").tolist() if np.isfinite(row[j])]
        hits += bool(wanted & set(order[:cutoff]))
    return hits / len(right)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[int], np.ndarray, np.ndarray, int]:
    numbers = draw(st.lists(st.integers(1, 3), min_size=2, max_size=7))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    shape = (len(numbers), sum(numbers))
    return (
        numbers,
        rng.permutation(shape[0] * shape[1]).reshape(shape) / 100,
        rng.normal(size=shape),
        draw(st.integers(1, 8)),
    )


@given(world=worlds(), cutoff=st.sampled_from([1, 2, 5]))
@settings(deadline=None)
def test_candidate_pairs_give_the_recalls_of_the_dense_protocol(
    world: tuple[list[int], np.ndarray, np.ndarray, int], cutoff: int
) -> None:
    numbers, itc, itm, k = world
    texts = texts_for(numbers)
    of_image = [{j for j, text in enumerate(texts) if text.image_ids == (str(i),)} for i in range(len(numbers))]
    of_text = [{int(text.image_ids[0])} for text in texts]
    for fusion, fused in (("itm+itc", itm + itc), ("itm", itm)):
        i2t, t2i = np.full(itc.shape, -np.inf), np.full(itc.T.shape, -np.inf)
        for i in range(len(numbers)):
            chosen = list(top(itc[i], k))
            i2t[i, chosen] = fused[i, chosen]
        for j in range(len(texts)):
            chosen = list(top(itc[:, j], k))
            t2i[j, chosen] = fused[chosen, j]
        recall = recall_at_k(candidates(itc, itm, k), texts, k=k, fusion=fusion, cutoffs=[cutoff])
        assert recall.i2t[cutoff] == pytest.approx(dense_recall(i2t, of_image, cutoff))
        assert recall.t2i[cutoff] == pytest.approx(dense_recall(t2i, of_text, cutoff))
    if cutoff <= k:  # by ITC alone the candidates are as good as all pairs
        recall = recall_at_k(candidates(itc, itm, k), texts, k=k, fusion="itc", cutoffs=[cutoff])
        assert recall.i2t[cutoff] == pytest.approx(dense_recall(itc, of_image, cutoff))
        assert recall.t2i[cutoff] == pytest.approx(dense_recall(itc.T, of_text, cutoff))


def answered(pairs: Pairs) -> list[Answered]:
    return [Answered(sample=Sample(id=image, image_ids=(image,)), answer=each) for image, each in pairs.items()]


def world_of(numbers: list[int], seed: int = 0) -> tuple[Pairs, tuple[Text, ...]]:
    rng = np.random.default_rng(seed)
    texts = texts_for(numbers)
    itc = rng.normal(size=(len(numbers), len(texts)))
    return candidates(itc, rng.normal(size=itc.shape), 10), tuple(texts)


def test_the_metric_gives_both_rankings() -> None:
    pairs, texts = world_of([2] * 12)
    scores = retrieval_metric().compute(answered(pairs), MetricSettings(texts=texts, k=10))
    names = {f"{d}_R@{k}{s}" for d in ("i2t", "t2i") for k in (1, 5, 10) for s in ("", "[itc]")}
    assert scores.aggregate.keys() == names | {"r_mean", "r_mean[itc]"}
    direct = recall_at_k(pairs, texts, k=10)
    assert scores.aggregate["t2i_R@5"] == direct.t2i[5]
    assert scores.aggregate["r_mean"] == pytest.approx(direct.mean)
    assert scores.variant == "itm+itc"
    for name, values in scores.per_sample.items():  # two texts an image: a mean over images is the recall
        assert scores.aggregate[name] == pytest.approx(sum(value for value in values if value is not None) / 12)
    for name, (low, high) in scores.intervals.items():
        assert low <= scores.aggregate[name] <= high


def test_texts_have_no_value_a_sample_where_images_have_different_numbers() -> None:
    pairs, texts = world_of([1, 3] * 6)
    scores = retrieval_metric().compute(answered(pairs), MetricSettings(texts=texts, k=10))
    assert "i2t_R@1" in scores.per_sample
    assert "t2i_R@1" not in scores.per_sample
    assert "t2i_R@1" in scores.intervals


def test_without_itm_it_ranks_by_itc() -> None:
    pairs, texts = world_of([2] * 12)
    without = {image: [(text, itc, None) for text, itc, _ in each] for image, each in pairs.items()}
    scores = retrieval_metric().compute(answered(without), MetricSettings(texts=texts, k=10))
    assert all(scores.aggregate[name] == scores.aggregate[f"{name}[itc]"] for name in ("i2t_R@1", "t2i_R@5", "r_mean"))
    assert scores.variant == "itc"


def test_a_cutoff_beyond_k_is_no_score() -> None:
    pairs, texts = world_of([2] * 12)
    scores = retrieval_metric().compute(answered(pairs), MetricSettings(texts=texts, k=5))
    assert "i2t_R@5" in scores.aggregate
    assert "i2t_R@10" not in scores.aggregate
    assert "k=10" in scores.unavailable["i2t_R@10"]
    assert "r_mean" in scores.unavailable


def test_texts_of_images_that_failed_are_not_counted() -> None:
    pairs, texts = world_of([2] * 12)
    del pairs["11"]
    recall = recall_at_k(pairs, texts, k=10)
    assert len(recall.i2t_ranks) == 11
    assert len(recall.t2i_ranks) == 22


def test_a_text_written_for_two_images_is_found_by_either() -> None:
    texts = [Text(id="a", text="", image_ids=("1", "2")), Text(id="b", text="", image_ids=("2",))]
    pairs: Pairs = {"1": [("a", 0.1, None), ("b", 0.9, None)], "2": [("a", 0.5, None), ("b", 0.2, None)]}
    recall = recall_at_k(pairs, texts, fusion="itc")
    assert recall.t2i_ranks == {"a": 0, "b": 1}
    assert recall.i2t_ranks == {"1": 1, "2": 0}


def test_ties_keep_the_order_of_texts_and_of_image_ids_and_nan_is_last() -> None:
    texts = [Text(id=name, text="", image_ids=("9",)) for name in ("b", "a", "c")]
    pairs: Pairs = {"10": [("a", 0.5, None), ("b", 0.5, None), ("c", float("nan"), None)], "9": [("a", 0.5, None)]}
    lists = ranked_candidates(pairs, texts, direction="i2t", fusion="itc")
    assert [name for name, _ in lists["10"]] == ["b", "a", "c"]
    assert [name for name, _ in ranked_candidates(pairs, texts, direction="t2i", fusion="itc")["a"]] == ["9", "10"]


def test_errors_name_the_pair() -> None:
    texts = texts_for([1, 1])
    with pytest.raises(ResultsError, match="image 0 name text 'x'"):
        recall_at_k({"0": [("t0", 0.5, 1.0), ("x", 0.5, 1.0)]}, texts)
    with pytest.raises(ResultsError, match="text 't1' stands twice in the pairs of image 1"):
        recall_at_k({"0": [("t0", 0.5, 1.0)], "1": [("t1", 0.5, 1.0), ("t1", 0.5, 1.0)]}, texts)
    with pytest.raises(ResultsError, match="1 of 2 pairs have no ITM"):
        recall_at_k({"0": [("t0", 0.5, 1.0), ("t1", 0.5, None)]}, texts)
    with pytest.raises(ConfigError, match="no fusion rule 'sum'"):
        recall_at_k({"0": []}, texts, fusion="sum")
    with pytest.raises(ConfigError, match="no fusion rule 'sum'"):
        retrieval_metric("sum")
    with pytest.raises(MetricError, match="none"):
        recall_at_k({"0": []}, [])


def test_an_image_without_candidates_is_a_miss() -> None:
    recall = recall_at_k({"0": [], "1": []}, texts_for([1, 1]))
    assert recall.i2t == recall.t2i == {1: 0, 5: 0, 10: 0}
    assert recall.i2t_ranks == {"0": None, "1": None}


@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_order_changes_nothing(seed: int) -> None:
    pairs, texts = world_of([2] * 11, seed)
    rng = random.Random(seed)
    shuffled = {image: rng.sample(pairs[image], len(pairs[image])) for image in rng.sample(list(pairs), len(pairs))}
    given = MetricSettings(texts=texts, k=10)
    one, other = (retrieval_metric().compute(answered(each), given) for each in (pairs, shuffled))
    assert one.aggregate == other.aggregate


def test_perfect_scores_score_the_maximum() -> None:
    texts = texts_for([2] * 12)
    right = np.array([[float(text.image_ids == (str(i),)) for text in texts] for i in range(12)])
    scores = retrieval_metric().compute(
        answered(candidates(right, right, 10)), MetricSettings(texts=tuple(texts), k=10)
    )
    assert set(scores.aggregate.values()) == {1.0}
