"""VQA accuracy in the four variants that published numbers use.

    official   GT-Vision-Lab/VQA a013f00 (since 2021-03-11), `vqaEvaluation/vqaEval.py`, with Python 2's idea of a digit
    legacy     the same file before that, as LAVIS (BLIP, BLIP-2) and Qwen-VL still run it, under Python 3
    m4c        facebookresearch/mmf `mmf/utils/m4c_evaluators.py` (TextVQA; LLaVA)
    vizwiz     the VizWiz API's `vqaEval.py`

They differ in what is cleaned and in what "the other annotators" means:

    variant    prediction cleaned      answers cleaned            the other answers
    official   if the answers differ   if the answers differ      those whose record differs
    legacy     always                  punctuation, if they differ those whose record differs
    m4c        always                  always                     all but this one; exactly ten are required
    vizwiz     always                  never                      all but this one
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from evalkit.errors import ConfigError, MetricError, unknown
from evalkit.types import Answered, Metric, MetricSettings, Scores

VARIANTS = ("official", "legacy", "m4c", "vizwiz")

Answer: TypeAlias = str | Mapping[str, Any]
"""An annotator's answer: the text, or its record {"answer": ..., "answer_id": ...}."""


class Normalised(NamedTuple):
    """A prediction and the answers as a variant compares them."""

    prediction: str
    answers: tuple[str, ...]


def vqa_accuracy(prediction: str, answers: Sequence[Answer], *, variant: str) -> float:
    """Return the accuracy of one answer: the mean, over the annotators, of min(1, agreeing others / 3).

    Source: `vqaEval.py` and `m4c_evaluators.py`, see the module's docstring.

    Args:
        prediction: The predicted answer, uncleaned.
        answers: What the annotators said. Records are compared as wholes by `official` and `legacy`: two that are equal
            in every key count as one person, so records without `answer_id` lose their duplicates, as in the official
            script. Plain strings are different people.
        variant: One of `VARIANTS`.

    Returns:
        A fraction; with ten annotators who agree or not, 0, 0.3, 0.6, 0.9 or 1.

    Raises:
        ConfigError: The variant is not known.
        MetricError: There is no answer, or `m4c` was not given exactly ten.

    >>> vqa_accuracy("two", ["2"] * 3 + ["3"] * 7, variant="official")
    0.9
    >>> vqa_accuracy("Yes.", ["yes"] * 10, variant="official")  # all agree: the official code cleans nothing
    0.0
    >>> vqa_accuracy("Yes.", ["yes"] * 10, variant="legacy")
    1.0
    >>> vqa_accuracy("cat", [{"answer": "cat"}] * 6 + [{"answer": "dog"}] * 4, variant="official")  # no answer_id
    0.4
    """
    normalised = normalise(prediction, answers, variant=variant)
    agreeing = [
        answer for answer, text in zip(answers, normalised.answers, strict=True) if text == normalised.prediction
    ]
    thirds = (len(answers) - len(agreeing)) * min(3, len(agreeing))
    if variant in ("m4c", "vizwiz") or _are_distinct(agreeing):
        thirds += len(agreeing) * min(3, len(agreeing) - 1)
    else:
        people = [_person(answer, i) for i, answer in enumerate(agreeing)]
        thirds += sum(min(3, len(people) - people.count(person)) for person in people)
    return thirds / (3 * len(answers))


def normalise(prediction: str, answers: Sequence[Answer], *, variant: str) -> Normalised:
    """Return the prediction and the answers as this variant compares them.

    Raises:
        ConfigError: The variant is not known.
        MetricError: There is no answer, or `m4c` was not given exactly ten.

    >>> normalise("The two cats!", ["2 cats", "a cat"], variant="official")
    Normalised(prediction='2 cats', answers=('2 cats', 'cat'))
    """
    if not answers:
        raise MetricError("VQA accuracy needs the annotators' answers, but this question has none")
    texts = [answer if isinstance(answer, str) else answer["answer"] for answer in answers]
    match variant:
        case "official":
            stripped = [_strip(text) for text in texts]
            if len(set(stripped)) == 1:
                return Normalised(_strip(prediction), tuple(stripped))
            return Normalised(_official(prediction), tuple(_official(text) for text in texts))
        case "legacy":
            if len(set(texts)) > 1:
                texts = [_legacy_answer(text) for text in texts]
            return Normalised(_legacy(prediction), tuple(texts))
        case "m4c":
            if len(texts) != 10:
                raise MetricError(f"the m4c variant needs exactly 10 answers a question, but one has {len(texts)}")
            return Normalised(_m4c(prediction), tuple(_m4c(text) for text in texts))
        case "vizwiz":
            return Normalised(_vizwiz(prediction), tuple(texts))
    raise ConfigError(unknown("VQA variant", variant, VARIANTS))


def vqa_metric(variant: str) -> Metric:
    """Return the metric of a VQA task: `vqa_accuracy` under this variant, and `vqa_accuracy[...]` under all four.

    A sample's reference is {"answers": [{"answer": str, "answer_id": int}, ...]}; the answer is text, or None where
    the extraction found none, which is wrong.

    Raises:
        ConfigError: The variant is not known.

    >>> from evalkit.types import Sample
    >>> sample = Sample(id="1", image_ids=("7",), reference={"answers": ["cat"] * 2 + ["dog"] * 8})
    >>> scores = vqa_metric("m4c").compute([Answered(sample=sample, answer="Cat?")], MetricSettings())
    >>> scores.aggregate["vqa_accuracy"], scores.aggregate["vqa_accuracy[legacy]"]
    (0.6, 0.6)
    """
    if variant not in VARIANTS:
        raise ConfigError(unknown("VQA variant", variant, VARIANTS))
    names = ("vqa_accuracy", *(f"vqa_accuracy[{each}]" for each in VARIANTS))
    return Metric(name="vqa_accuracy", compute=functools.partial(vqa_scores, variant=variant), names=names)


def vqa_scores(answered: Sequence[Answered], settings: MetricSettings, *, variant: str) -> Scores:
    """Return `vqa_accuracy` (this variant) and `vqa_accuracy[v]` for every variant: fractions, and a value a sample.

    A variant that these answers do not allow is in `unavailable`. `settings.names` chooses among the names.
    """
    aggregate: dict[str, float] = {}
    per_sample: dict[str, tuple[float | None, ...]] = {}
    unavailable: dict[str, str] = {}
    for each in VARIANTS:
        names = [f"vqa_accuracy[{each}]", *(["vqa_accuracy"] if each == variant else [])]
        names = [name for name in names if not settings.names or name in settings.names]
        if not names:
            continue
        try:
            values = _values(answered, each)
        except MetricError as error:
            unavailable |= dict.fromkeys(names, str(error))
            continue
        per_sample |= dict.fromkeys(names, values)
        aggregate |= dict.fromkeys(names, math.fsum(values) / len(values))
    return Scores(aggregate=aggregate, per_sample=per_sample, unavailable=unavailable)


def _values(answered: Sequence[Answered], variant: str) -> tuple[float, ...]:
    if not answered:
        raise MetricError("no sample was answered")
    values = []
    for each in answered:
        if each.answer is not None and not isinstance(each.answer, str):
            raise MetricError(f"VQA accuracy compares text, but the answer to question {each.sample.id} is none")
        try:
            # The accuracy of "" is asked for the errors; no answer is not the answer "".
            accuracy = vqa_accuracy(each.answer or "", each.sample.reference["answers"], variant=variant)
        except MetricError as error:
            raise MetricError(f"{error} (question {each.sample.id})") from error
        values.append(0.0 if each.answer is None else accuracy)
    return tuple(values)


def _are_distinct(answers: Sequence[Answer]) -> bool:
    """Return whether it is plain that no two of these are the same record."""
    ids = [i if isinstance(answer, str) else answer.get("answer_id") for i, answer in enumerate(answers)]
    return None not in ids and len(set(ids)) == len(ids)


def _person(answer: Answer, place: int) -> object:
    """Return what tells an answer from the others that agree: the rest of its record, or its place."""
    return place if isinstance(answer, str) else {key: value for key, value in answer.items() if key != "answer"}


# The official lists. ' : % $ & * # | ^ ~ and everything beyond ASCII are not punctuation here.
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = frozenset({"a", "an", "the"})

# Python 2's \d is ASCII, so the official script has ASCII digits; the others run under Python 3.
_DIGIT_COMMA_ASCII = re.compile(r"[0-9],[0-9]")
_DIGIT_COMMA = re.compile(r"\d,\d")
# The lookbehind of the official pattern is mistyped, "(?!<=\d)", and always holds: only what follows counts.
_PERIOD_ASCII = re.compile(r"\.(?![0-9])")
_PERIOD = re.compile(r"\.(?!\d)")
# `re.UNICODE` stands where `sub` takes its count, and is 32.
_PERIODS_REMOVED = 32

# Contractions as they should be written. A word that lacks one of its apostrophes is given it back.
_CONTRACTIONS = tuple(
    """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
    """.split()  # noqa: SIM905
)
# In the VizWiz map all apostrophes are U+2019 but those of these words ...
_STRAIGHT_IN_VIZWIZ = ("ain't", "aren't", "can't", "could've", "couldn't", "we've", "where's", "who've")
# ... and of these keys.
_STRAIGHT_KEYS_IN_VIZWIZ = {"couldn\u2019tve": "couldn'tve", "hadn\u2019tve": "hadn'tve"}


def _repairs(words: Sequence[str], apostrophe: str) -> dict[str, str]:
    """Return {word without one of its apostrophes: word}, and the entry that the official map has the wrong way round.

    >>> _repairs(["he'd've"], "'")
    {"hed've": "he'd've", "he'dve": "he'd've", "somebody'd": 'somebodyd'}
    """
    repairs = {word[:i] + word[i + 1 :]: word for word in words for i, char in enumerate(word) if char == apostrophe}
    return repairs | {f"somebody{apostrophe}d": "somebodyd"}


_REPAIRS = _repairs(_CONTRACTIONS, "'")
_REPAIRS_VIZWIZ = {
    _STRAIGHT_KEYS_IN_VIZWIZ.get(key, key): word
    for key, word in _repairs([word.replace("'", "\u2019") for word in _CONTRACTIONS], "\u2019").items()
} | {word.replace("'", ""): word for word in _STRAIGHT_IN_VIZWIZ}


def _strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(text: str, digit_comma: re.Pattern[str], period: re.Pattern[str]) -> str:
    """Delete or blank punctuation; whether it stood beside a space is asked of the text as it was."""
    out = text
    all_deleted = digit_comma.search(text) is not None
    for char in _PUNCTUATION:
        if char in text:
            deleted = all_deleted or f"{char} " in text or f" {char}" in text
            out = out.replace(char, "" if deleted else " ")
    return period.sub("", out, count=_PERIODS_REMOVED) if "." in out else out


def _words(text: str, repairs: Mapping[str, str]) -> str:
    """Map number words to digits, drop articles, repair contractions, collapse spaces."""
    numbers = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(repairs.get(word, word) for word in numbers if word not in _ARTICLES)


def _cached(function: Callable[[str], str]) -> Callable[[str], str]:
    """Remember the last texts: answers repeat, between annotators and between questions."""
    return functools.lru_cache(maxsize=1 << 16)(function)


@_cached
def _official(text: str) -> str:
    return _words(_punctuation(_strip(text), _DIGIT_COMMA_ASCII, _PERIOD_ASCII), _REPAIRS)


@_cached
def _legacy(text: str) -> str:
    return _words(_punctuation(_strip(text), _DIGIT_COMMA, _PERIOD), _REPAIRS)


@_cached
def _legacy_answer(text: str) -> str:
    return _punctuation(text, _DIGIT_COMMA, _PERIOD)


@_cached
def _m4c(text: str) -> str:
    separated = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _words(_punctuation(_strip(separated), _DIGIT_COMMA, _PERIOD), _REPAIRS)


@_cached
def _vizwiz(text: str) -> str:
    return _words(_punctuation(_strip(text), _DIGIT_COMMA, _PERIOD), _REPAIRS_VIZWIZ)
