"""BLEU, ROUGE-L and CIDEr-D as the official caption scorer computes them, on integers instead of tuples.

Every distinct n-gram gets a number; counts per caption are then sorted arrays, and clipping, document frequencies and
cosines are a few array operations for the whole set. BLEU (Papineni et al., 2002) and ROUGE-L (Lin, 2004) come out
bit for bit as from pycocoevalcap 1.2, CIDEr-D (Vedantam et al., 2015) within rounding: its sums run in another order.

All functions take captions that are tokenized already: words joined by single spaces.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from evalkit.errors import MetricError

if TYPE_CHECKING:
    from collections.abc import Iterator

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Number = TypeVar("Number", np.int64, np.float64)

ORDERS = 4
"""N-grams of one to four words, in BLEU and in CIDEr."""
_TINY, _SMALL = 1e-15, 1e-9
_BETA = 1.2
_SIGMA = 6.0


class _Numbers(dict[str, int]):
    """Gives every new word the next number."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


@dataclass(frozen=True)
class Corpus:
    """Hypotheses and references with a number for every word; made once, used by all three metrics."""

    hypotheses: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    image: Ints
    """(C,) image of each caption: all references first, in order, then one hypothesis an image."""
    words: Ints
    """(W,) numbers of all words, caption after caption."""
    caption: Ints
    """(W,) which caption each word stands in."""
    lengths: Ints
    """(C,) words a caption."""

    @property
    def num_images(self) -> int:
        """Return N, the number of images."""
        return len(self.hypotheses)

    @property
    def num_references(self) -> int:
        """Return R, the number of reference captions; captions R ... R + N - 1 are the hypotheses."""
        return len(self.image) - len(self.hypotheses)

    @classmethod
    def of(cls, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Corpus:
        """Number the words of N hypotheses and their references.

        Raises:
            MetricError: nothing to score, or an image without references.
        """
        if not hypotheses:
            raise MetricError("caption metrics need at least one image; none was given.")
        if len(hypotheses) != len(references):
            raise MetricError(f"{len(hypotheses)} hypotheses but references for {len(references)} images.")
        bare = [index for index, captions in enumerate(references) if not captions]
        if bare:
            raise MetricError(
                f"image number {bare[0]} (of {len(bare)} such) has no reference caption, so no caption metric is "
                "defined for it; leave these images out or give their captions."
            )
        captions = [caption for group in references for caption in group]
        counts = np.array([len(group) for group in references], dtype=np.int64)
        image = np.concatenate([np.repeat(np.arange(len(counts)), counts), np.arange(len(hypotheses))])
        numbers = _Numbers()
        words: list[int] = []
        lengths: list[int] = []
        for text in (*captions, *hypotheses):
            split = text.split()
            lengths.append(len(split))
            words += map(numbers.__getitem__, split)
        sizes = np.array(lengths, dtype=np.int64)
        return cls(
            tuple(hypotheses),
            tuple(tuple(group) for group in references),
            image.astype(np.int64),
            np.array(words, dtype=np.int64),
            np.repeat(np.arange(len(sizes)), sizes),
            sizes,
        )

    @cached_property
    def counts(self) -> tuple[Counts, ...]:
        """The n-gram counts for n = 1 ... 4."""
        return tuple(self._count())

    def _count(self) -> Iterator[Counts]:
        gram, caption = self.words, self.caption
        size = int(gram.max()) + 1 if len(gram) else 1
        vocabulary = size
        for order in range(1, ORDERS + 1):
            if order > 1:
                inside = caption[: len(caption) - 1] == self.caption[order - 1 :]
                pair = gram[:-1] * vocabulary + self.words[order - 1 :]
                # An n-gram that leaves its caption gets number -1 and never counts.
                whole = inside & (gram[:-1] >= 0)
                kinds, number = np.unique(pair[whole], return_inverse=True)
                gram = np.full(len(pair), -1, dtype=np.int64)
                gram[whole] = number
                caption = caption[:-1]
                size = max(len(kinds), 1)
            valid = gram >= 0
            keys, count = np.unique(caption[valid] * size + gram[valid], return_counts=True)
            yield Counts(keys // size, keys % size, count.astype(np.int64), size)


@dataclass(frozen=True, slots=True)
class Counts:
    """How often each n-gram of one order stands in each caption, sorted by caption, then n-gram."""

    caption: Ints
    gram: Ints
    count: Ints
    size: int
    """Distinct n-grams, so that caption * size + gram is a key."""


# --- BLEU ------------------------------------------------------------------------------------------------------------


def bleu_statistics(corpus: Corpus) -> Ints:
    """Return what BLEU needs of each image, (N, 10).

    The columns: matched n-grams for n = 1 ... 4, n-grams of the hypothesis, its length, the closest reference's length.

    Their sum over any set of images is what `bleu` takes, so a bootstrap over images needs nothing else.
    """
    split = corpus.num_references
    given = corpus.lengths[split:]
    statistics = np.zeros((corpus.num_images, 10), dtype=np.int64)
    for order, counts in enumerate(corpus.counts):
        image = corpus.image[counts.caption]
        reference = counts.caption < split
        keys = image * counts.size + counts.gram
        most_keys, most = _maxima(keys[reference], counts.count[reference])
        allowed = _look_up(most_keys, most, keys[~reference])
        matched = np.minimum(counts.count[~reference], allowed)
        statistics[:, order] = np.bincount(image[~reference], matched, corpus.num_images).astype(np.int64)
        statistics[:, 4 + order] = np.maximum(0, given - order)
    statistics[:, 8] = given
    lengths = corpus.lengths[:split]
    away = np.abs(lengths - given[corpus.image[:split]])
    # The closest reference; of two as close, the shorter one.
    order_ = np.lexsort((lengths, away, corpus.image[:split]))
    first = np.unique(corpus.image[:split][order_], return_index=True)[1]
    statistics[:, 9] = lengths[order_][first]
    return statistics


def bleu(statistics: Ints) -> tuple[float, float, float, float]:
    """Return BLEU-1 to BLEU-4 of statistics summed over images, (10,) as `bleu_statistics` orders them.

    >>> import numpy as np
    >>> # "a b c" against "a b d": 2 of 3 words, 1 of 2 pairs; same length, so no brevity penalty.
    >>> [round(score, 6) for score in bleu(np.array([2, 1, 0, 0, 3, 2, 1, 0, 3, 3]))[:2]]  # 2/3, sqrt(2/3 * 1/2)
    [0.666667, 0.57735]
    """
    matched, given = statistics[:4].tolist(), statistics[4:8].tolist()
    length, reference = int(statistics[8]), int(statistics[9])
    scores: list[float] = []
    product = 1.0
    for order in range(ORDERS):
        product *= float(matched[order] + _TINY) / (given[order] + _SMALL)
        scores.append(product ** (1.0 / (order + 1)))
    ratio = (length + _TINY) / (reference + _SMALL)
    if ratio < 1:
        penalty = math.exp(1 - 1 / ratio)
        scores = [score * penalty for score in scores]
    return scores[0], scores[1], scores[2], scores[3]


# --- ROUGE-L ---------------------------------------------------------------------------------------------------------


def rouge_l(corpus: Corpus) -> Floats:
    """Return ROUGE-L of each image, (N,): the F-measure (beta 1.2) of the best precision and the best recall.

    An empty caption counts as one empty word, as in the official code.

    >>> rouge_l(Corpus.of(["a b c d"], [["a c d e"]])).tolist()  # the longest common part is "a c d": 3/4 and 3/4
    [0.75]
    """
    numbers = _Numbers()
    hypotheses = [list(map(numbers.__getitem__, caption.split(" "))) for caption in corpus.hypotheses]
    references = [
        list(map(numbers.__getitem__, caption.split(" "))) for group in corpus.references for caption in group
    ]
    image = corpus.image[: corpus.num_references]
    common = _longest_common([hypotheses[index] for index in image], references)
    precision = common / np.array([len(hypotheses[index]) for index in image], dtype=np.float64)
    recall = common / np.array([len(words) for words in references], dtype=np.float64)
    starts = np.unique(image, return_index=True)[1]
    best_p: Floats = np.maximum.reduceat(precision, starts)
    best_r: Floats = np.maximum.reduceat(recall, starts)
    scores = np.zeros(corpus.num_images)
    some = (best_p != 0) & (best_r != 0)
    p, r = best_p[some], best_r[some]
    scores[some] = ((1 + _BETA**2) * p * r) / (r + _BETA**2 * p)
    return scores


def _longest_common(lefts: Sequence[list[int]], rights: Sequence[list[int]]) -> Ints:
    """Return the length of the longest common subsequence of each pair, by bit parallelism (Hyyrö, 2004)."""
    result = np.zeros(len(lefts), dtype=np.int64)
    short: list[int] = []
    for index, (left, right) in enumerate(zip(lefts, rights, strict=True)):
        if len(left) <= 64:
            short.append(index)
        else:
            result[index] = _longest_common_pair(left, right)
    short.sort(key=lambda index: (len(lefts[index]), len(rights[index])))
    for start in range(0, len(short), 4096):
        block = short[start : start + 4096]
        left_words = _padded((lefts[index] for index in block), len(block), -1)
        right_words = _padded((rights[index] for index in block), len(block), -2)
        rows: npt.NDArray[np.uint64] = np.full(len(block), ~np.uint64(0), dtype=np.uint64)
        for column in right_words:
            here = np.zeros(len(block), dtype=np.uint64)
            for bit, words in enumerate(left_words):
                here[words == column] |= np.uint64(1) << np.uint64(bit)
            both = rows & here
            rows = np.bitwise_or(rows + both, rows - both)
        bits = np.unpackbits((~rows).view(np.uint8).reshape(len(block), 8), axis=1)
        result[block] = bits.sum(axis=1)
    return result


def _padded(lists: Iterable[list[int]], number: int, filler: int) -> Ints:
    """Return (longest, number): position by position, so that a row is one step for all pairs."""
    rows = list(lists)
    padded = np.full((number, max(len(row) for row in rows)), filler, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return np.ascontiguousarray(padded.T)


def _longest_common_pair(left: Sequence[int], right: Sequence[int]) -> int:
    where: dict[int, int] = {}
    for bit, word in enumerate(left):
        where[word] = where.get(word, 0) | (1 << bit)
    full = (1 << len(left)) - 1
    rows = full
    for word in right:
        both = rows & where.get(word, 0)
        rows = ((rows + both) | (rows - both)) & full
    return len(left) - rows.bit_count()


# --- CIDEr-D ---------------------------------------------------------------------------------------------------------


def cider(corpus: Corpus) -> Floats:
    """Return CIDEr-D of each image, (N,), its factor of ten included.

    Document frequencies come from the references of the images scored, so a subset has other values, and one image
    alone always 0.

    >>> cider(Corpus.of(["a b", "c d"], [["a b"], ["c e"]])).round(4).tolist()  # 10 * (1 + 1) / 4; 10 * (1/2) / 4
    [5.0, 1.25]
    """
    split, num_images = corpus.num_references, corpus.num_images
    image = corpus.image[:split]
    log_images = np.log(float(num_images))
    pairs = np.maximum(0, corpus.lengths - 1)
    away = (pairs[split:][image] - pairs[:split]).astype(np.float64)
    penalty = np.e ** (-(away**2) / (2 * _SIGMA**2))
    total = np.zeros(split)
    for counts in corpus.counts:
        reference = counts.caption < split
        owner = corpus.image[counts.caption]
        keys = owner * counts.size + counts.gram
        documents = np.bincount(_distinct(keys[reference]) % counts.size, minlength=counts.size)
        weight = counts.count * (log_images - np.log(np.maximum(1.0, documents)))[counts.gram]
        norm = np.sqrt(np.bincount(counts.caption, weight**2, len(corpus.image)))
        mine = weight[reference]
        # Hypotheses are sorted by image and n-gram: their keys are in order.
        theirs = _look_up(keys[~reference], weight[~reference], keys[reference])
        value = np.bincount(counts.caption[reference], np.minimum(mine, theirs) * mine, split).astype(np.float64)
        length = norm[split:][image] * norm[:split]
        divided = length != 0
        value[divided] /= length[divided]
        total += value * penalty
    per_image = np.bincount(image, total / ORDERS, num_images)
    result: Floats = per_image / np.bincount(image, minlength=num_images) * 10.0
    return result


# --- sorted keys -----------------------------------------------------------------------------------------------------


def _distinct(keys: Ints) -> Ints:
    """Return the distinct keys, sorted; np.unique would hash them first, which takes five times as long."""
    ordered = np.sort(keys)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered


def _maxima(keys: Ints, values: Ints) -> tuple[Ints, Ints]:
    """Return the distinct keys, sorted, and the largest value of each."""
    if not len(keys):
        return keys, values
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return ordered[starts], np.maximum.reduceat(values[order], starts)


def _look_up(keys: Ints, values: npt.NDArray[Number], wanted: Ints) -> npt.NDArray[Number]:
    """Return the value of each wanted key, 0 where there is none. `keys` are sorted and distinct."""
    found = np.zeros(len(wanted), dtype=values.dtype)
    if len(keys):
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        hit = keys[place] == wanted
        found[hit] = values[place[hit]]
    return found
