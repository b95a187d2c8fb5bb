"""ANLS and relaxed accuracy: text answers that may be a little off. Accuracy: the right one of several options.

    accuracy            top-1 of zero-shot classification (openai/CLIP `Prompt_Engineering_for_ImageNet.ipynb`)
    anls                the RRC script of DocVQA and InfographicVQA (QwenLM/Qwen-VL `eval_mm/infographicsvqa_eval.py`)
    relaxed_accuracy    google-research/pix2struct `pix2struct/metrics.py` (ChartQA), and Qwen-VL's call of it

A sample's reference is {"answers": [str, ...]}, for accuracy {"option": the place of the right one}; the answer is
text, or None where the extraction found none: wrong.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from evalkit.errors import ConfigError, MetricError, unknown
from evalkit.types import Answered, Metric, MetricSettings, Sample, Scores

RELAXED_VARIANTS = ("pix2struct", "qwen_vl")


def accuracy(answer: str, options: Sequence[str], right: int) -> float:
    """Return 1 if the answer is the right option, else 0.

    Of options with one text the first is what was answered, as an argmax over their equal scores takes the first: two
    classes of one name share an answer, and only the first of them can be right.

    Args:
        answer: The option that was chosen; a text that is none of them is wrong.
        options: In the order in which the model had them.
        right: The place of the right one, from 0.

    >>> accuracy("hen", ["cock", "hen"], 1), accuracy("a hen", ["cock", "hen"], 1)
    (1.0, 0.0)
    >>> accuracy("crane", ["crane", "hen", "crane"], 0), accuracy("crane", ["crane", "hen", "crane"], 2)
    (1.0, 0.0)
    """
    return float(options[right] == answer and right == options.index(answer))


def anls(prediction: str, answers: Sequence[str], *, threshold: float = 0.5) -> float:
    """Return the normalised Levenshtein similarity to the nearest answer, 0 if it is below the threshold.

    Source: RRC `evaluate_method`. The distance is that of the lower-cased strings with spaces collapsed; it is divided
    by the length of the longer raw string in upper case, so padding counts and "ß" counts twice.

    Args:
        prediction: The predicted answer, uncleaned.
        answers: The right ones.
        threshold: A similarity below it is 0; a similarity equal to it stays.

    Returns:
        A fraction. The corpus score is the mean.

    Raises:
        MetricError: There is no answer to compare with.

    >>> anls("hallo", ["Hello", "bye"])  # one of five letters
    0.8
    >>> anls("ab", ["abcd"]), anls("a", ["abcd"])
    (0.5, 0.0)
    """
    if not answers:
        raise MetricError("ANLS needs at least one right answer, but this question has none")
    score = 1 - min(_normalised_distance(prediction, answer, 1 - threshold) for answer in answers)
    return score if score >= threshold else 0.0


def relaxed_accuracy(prediction: str, answers: Sequence[str], *, variant: str = "pix2struct") -> float:
    """Return 1 if the prediction is within 5 % of an answer (numbers) or equal to it in lower case (the rest), else 0.

    Source: pix2struct `relaxed_correctness(target, prediction)`. "12%" is 0.12; a number is what Python's `float`
    reads, so "1,000" is text and "１２" is twelve; a target of 0 is compared as text; nothing is stripped.
    Qwen-VL `evaluate_vqa.py` strips the prediction and swaps the arguments: 5 % of the prediction.

    Raises:
        ConfigError: The variant is not known.
        MetricError: There is no answer to compare with.

    >>> relaxed_accuracy("105", ["100"]), relaxed_accuracy("95.1", ["100"], variant="qwen_vl")
    (1.0, 0.0)
    >>> relaxed_accuracy("12%", ["0.12"]), relaxed_accuracy("12", ["12%"])
    (1.0, 0.0)
    """
    if not answers:
        raise MetricError("relaxed accuracy needs at least one right answer, but this question has none")
    match variant:
        case "pix2struct":
            return float(any(_relaxed(answer, prediction) for answer in answers))
        case "qwen_vl":
            return float(any(_relaxed(prediction.strip(), answer) for answer in answers))
    raise ConfigError(unknown("relaxed accuracy variant", variant, RELAXED_VARIANTS))


def accuracy_metric() -> Metric:
    """Return the metric `accuracy` of a `choose` task, a value a sample.

    >>> from evalkit.types import Sample
    >>> sample = Sample(id="1", image_ids=("7",), options=("cock", "hen"), reference={"option": 1})
    >>> accuracy_metric().compute([Answered(sample=sample, answer="hen")], MetricSettings()).aggregate
    {'accuracy': 1.0}
    """
    return Metric(name="accuracy", compute=functools.partial(_mean, "accuracy", _chosen))


def anls_metric(threshold: float = 0.5) -> Metric:
    """Return the metric `anls`, a value a sample.

    >>> from evalkit.types import Sample
    >>> sample = Sample(id="1", image_ids=("7",), reference={"answers": ["hello"]})
    >>> anls_metric().compute([Answered(sample=sample, answer="Hallo")], MetricSettings()).aggregate
    {'anls': 0.8}
    """
    score = functools.partial(_against_answers, functools.partial(anls, threshold=threshold))
    return Metric(name="anls", compute=functools.partial(_mean, "anls", score))


def relaxed_metric(variant: str = "pix2struct") -> Metric:
    """Return the metric `relaxed_accuracy`, a value a sample.

    Raises:
        ConfigError: The variant is not known.

    >>> from evalkit.types import Sample
    >>> sample = Sample(id="1", image_ids=("7",), reference={"answers": ["2014"]})
    >>> relaxed_metric().compute([Answered(sample=sample, answer="2010")], MetricSettings()).aggregate
    {'relaxed_accuracy': 1.0}
    """
    if variant not in RELAXED_VARIANTS:
        raise ConfigError(unknown("relaxed accuracy variant", variant, RELAXED_VARIANTS))
    score = functools.partial(_against_answers, functools.partial(relaxed_accuracy, variant=variant))
    return Metric(name="relaxed_accuracy", compute=functools.partial(_mean, "relaxed_accuracy", score))


def levenshtein(a: str, b: str) -> int:
    """Return the least number of insertions, deletions and substitutions of a character that turn a into b.

    The columns of the table are bit vectors, one bit a character of a (Hyyrö 2003, after Myers 1999), so the time grows
    with the length of b alone until a is longer than a machine word.

    >>> levenshtein("kitten", "sitting")
    3
    """
    if not a:
        return len(b)
    where: dict[str, int] = {}
    for i, char in enumerate(a):
        where[char] = where.get(char, 0) | 1 << i
    full, top = (1 << len(a)) - 1, 1 << len(a) - 1
    plus, minus, distance = full, 0, len(a)
    for char in b:
        equal = where.get(char, 0)
        zero = (((equal & plus) + plus) ^ plus) | equal | minus
        right_plus = minus | ~(zero | plus) & full
        right_minus = plus & zero
        distance += bool(right_plus & top) - bool(right_minus & top)
        right_plus = right_plus << 1 & full | 1
        right_minus = right_minus << 1 & full
        plus, minus = right_minus | ~(zero | right_plus) & full, right_plus & zero
    return distance


def _normalised_distance(prediction: str, answer: str, most: float) -> float:
    """Return the distance over the raw length; where it is surely above `most`, a lower bound of it."""
    length = max(len(answer.upper()), len(prediction.upper()))
    if length == 0:
        return 0.0
    a, b = (" ".join(text.strip().lower().split()) for text in (answer, prediction))
    at_least = abs(len(a) - len(b)) / length
    return at_least if at_least > most else levenshtein(a, b) / length


def _relaxed(target: str, prediction: str) -> bool:
    predicted, wanted = _number(prediction), _number(target)
    if predicted is not None and wanted:
        return abs(predicted - wanted) / abs(wanted) <= 0.05
    return prediction.lower() == target.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _against_answers(score: Callable[[str, Sequence[str]], float], answer: str, sample: Sample) -> float:
    return score(answer, sample.reference["answers"])


def _chosen(answer: str, sample: Sample) -> float:
    return accuracy(answer, sample.options, sample.reference["option"])


def _mean(
    name: str,
    score: Callable[[str, Sample], float],
    answered: Sequence[Answered],
    settings: MetricSettings,
) -> Scores:
    if not answered:
        return Scores(unavailable={name: "no sample was answered"})
    if other := next((each for each in answered if each.answer is not None and not isinstance(each.answer, str)), None):
        return Scores(unavailable={name: f"it compares text, but the answer to question {other.sample.id} is none"})
    values = tuple(0.0 if each.answer is None else score(each.answer, each.sample) for each in answered)
    return Scores(aggregate={name: math.fsum(values) / len(values)}, per_sample={name: values})
