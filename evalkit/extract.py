"""From what a model wrote to what a metric compares: named pure functions, put together with "+".

    extract("strip+rstrip_period+lower", " Yes. ", sample) -> "yes"

Papers differ here more than in their metrics (LLaVA-1.5-13B on GQA: 63.3 after the three steps above, 0.0 without), so
the extraction is part of a task or protocol, can be changed when scoring again, and its name stands in the result. A
function sees the output and the question's own fields, never the reference. `describe` lists them.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from evalkit.errors import ConfigError, UnsupportedError, unknown
from evalkit.types import Json, Sample

Box: TypeAlias = tuple[float, float, float, float]
"""(x1, y1, x2, y2) in pixels of the original image."""


def extract(name: str, output: str, sample: Sample) -> Json:
    """Return the answer that this extraction finds in an output.

    Args:
        name: A name of `describe()`, or several joined by "+", applied from left to right.
        output: The raw text.
        sample: The question; boxes need `fields["width"]` and `fields["height"]` in pixels.

    Returns:
        Text; for boxes (x1, y1, x2, y2) in pixels of the image, or None where the output holds none; for `yes_no` and
        `option_letter` text or None.

    Raises:
        ConfigError: A name is not known, a step that does not give text is not the last, or a box is asked for an image
            of unknown size.
        UnsupportedError: `lemmatize` without spaCy or its model.

    >>> sample = Sample(id="1", image_ids=("7",), fields={"width": 999, "height": 1998})
    >>> extract("strip+rstrip_period+lower", " Yes. ", sample)
    'yes'
    >>> extract("box_999", "<ref>dog</ref><box>(0,100),(500,200)</box>", sample)
    (0.0, 200.0, 500.0, 400.0)
    """
    return extractor(name)(output, sample)


@functools.lru_cache(maxsize=256)
def extractor(name: str) -> Callable[[str, Sample], Json]:
    """Return the function of this name, or of several names joined by "+".

    Raises:
        ConfigError: A name is not known, a step that does not give text is not the last, or the numbers of
            `box_resized` are missing.
    """
    steps = [step.strip() for step in name.split("+")]
    functions = [_function(step) for step in steps]
    for step, after in itertools.pairwise(steps):
        if step not in _TEXT:
            raise ConfigError(f'extract={name}: {step} gives no text, so nothing can follow it, but "{after}" does')

    def apply(output: str, sample: Sample) -> Json:
        answer: Json = output
        for function in functions:
            answer = function(answer, sample)
        return answer

    return apply


def describe() -> Mapping[str, str]:
    """Return {name: what it does, in one line}.

    >>> describe()["lower"]
    'In lower case.'
    """
    return {name: (function.__doc__ or "").partition("\n")[0] for name, function in _STEPS.items()}


def preflight(name: str) -> str | None:
    """Return why this extraction cannot be done on this machine, or None; to be asked before a model runs for hours.

    Raises:
        ConfigError: A name is not known, or a step that does not give text is not the last.

    >>> preflight("strip+lower") is None
    True
    """
    extractor(name)
    if "lemmatize" in (step.strip() for step in name.split("+")):
        return _no_spacy()
    return None


def none(output: str, sample: Sample) -> str:
    """The output as it is."""
    return output


def strip(output: str, sample: Sample) -> str:
    """Without white space around it."""
    return output.strip()


def lower(output: str, sample: Sample) -> str:
    """In lower case."""
    return output.lower()


def first_line(output: str, sample: Sample) -> str:
    r"""The first line that holds more than white space, without white space around it.

    >>> first_line("\n a dog \nQuestion:", Sample(id="1", image_ids=("7",)))
    'a dog'
    """
    return next((line.strip() for line in output.split("\n") if line.strip()), "")


def first_comma(output: str, sample: Sample) -> str:
    """What stands before the first comma."""
    return output.partition(",")[0]


def first_sentence(output: str, sample: Sample) -> str:
    """What stands before the first full stop, exclamation or question mark at the end of a word."""
    return re.split(r"[.!?](?=\s|$)", output, maxsplit=1)[0]


def rstrip_period(output: str, sample: Sample) -> str:
    """Without full stops at the end."""
    return output.rstrip(".")


def llava_gqa(output: str, sample: Sample) -> str:
    """LLaVA's conversion of GQA answers: no full stop at the end, lower case (convert_gqa_for_eval.py)."""
    return output.rstrip(".").lower()


def qwen_gqa(output: str, sample: Sample) -> str:
    """Qwen-VL's cuts for GQA: up to . , or !, then after is, are, a, an, the, and before of (evaluate_vqa.py).

    "a " is looked for anywhere, also at the end of a word, and what follows the second one is lost too.

    >>> qwen_gqa("It is a dog.", Sample(id="1", image_ids=("7",)))
    'dog'
    >>> qwen_gqa("banana split", Sample(id="1", image_ids=("7",)))
    'split'
    """
    answer = output.strip()
    for mark in ".,!":
        answer = answer.partition(mark)[0]
    answer = answer.lower()
    for word in ("is ", "are ", "a ", "an ", "the "):
        if word in answer:
            answer = answer.split(word)[1]
    return answer.partition(" of")[0].strip()


def openflamingo_vqa(output: str, sample: Sample) -> str:
    """OpenFlamingo's cut of VQA answers: before Question, Answer or Short, then before a comma and space.

    >>> openflamingo_vqa("red, blue Question:", Sample(id="1", image_ids=("7",)))
    'red'
    """
    return re.split("Question|Answer|Short", output, maxsplit=1)[0].partition(", ")[0]


def openflamingo_caption(output: str, sample: Sample) -> str:
    """OpenFlamingo's cut of captions: before Output, without double quotes."""
    return output.partition("Output")[0].replace('"', "")


def lemmatize(output: str, sample: Sample) -> str:
    """Nouns and verbs as lemmas, as LAVIS does for OK-VQA; needs spaCy and its model en_core_web_sm."""
    return " ".join(token.lemma_ if token.pos_ in ("NOUN", "VERB") else token.text for token in _spacy()(output))


def option_letter(output: str, sample: Sample) -> str | None:
    """The letter A-E of an option, by LLaVA's rule for ScienceQA: "B", "B. ...", or one "The answer is B.".

    >>> sample = Sample(id="1", image_ids=("7",))
    >>> option_letter("B. a dog", sample), option_letter("The answer is C. BECAUSE", sample), option_letter("b", sample)
    ('B', 'C', None)
    """
    if output in _OPTIONS:
        return output
    if output[:1] in _OPTIONS and output[1:3] == ". ":
        return output[0]
    found = re.findall(r"The answer is ([A-Z]).", output)
    return found[0] if len(found) == 1 and found[0] in _OPTIONS else None


def yes_no(output: str, sample: Sample) -> str | None:
    """The first word that is yes or no, in lower case.

    >>> yes_no("Well, no, yes.", Sample(id="1", image_ids=("7",)))
    'no'
    """
    found = re.search(r"\b(yes|no)\b", output, re.IGNORECASE)
    return found[0].lower() if found else None


def box_999(output: str, sample: Sample) -> Box | None:
    """Qwen-VL's first (x1,y1),(x2,y2) on its grid 0..999, in pixels: x / 999 * width (evaluate_grounding.py).

    Single precision, as in the script: the last digit decides whether an IoU reaches 0.5. Whatever `float` reads is a
    number there, "nan" too; the corners may be the wrong way round.
    """
    corners = _qwen_corners(output)
    if corners is None:
        return None
    width, height = _size(sample)
    x1, y1, x2, y2 = (_f32(_f32(value) / 999) for value in corners)
    return _f32(x1 * width), _f32(y1 * height), _f32(x2 * width), _f32(y2 * height)


def box_1000(output: str, sample: Sample) -> Box | None:
    """The first four numbers in brackets, on a grid 0..1000 (Qwen2-VL and others), in pixels: x / 1000 * width."""
    return _scaled(output, sample, 1000)


def box_0_1(output: str, sample: Sample) -> Box | None:
    """The first four numbers in brackets, as fractions of the image (Shikra), in pixels.

    >>> box_0_1("[0.1, 0.2, 0.5, 1.0]", Sample(id="1", image_ids=("7",), fields={"width": 100, "height": 10}))
    (10.0, 2.0, 50.0, 10.0)
    """
    return _scaled(output, sample, 1)


def box_pixels(output: str, sample: Sample) -> Box | None:
    """The first four numbers in brackets, in pixels of the image."""
    return _four_numbers(output)


def box_square(output: str, sample: Sample) -> Box | None:
    """The first four numbers in brackets, as fractions of the image in the middle of a square (LLaVA-1.5), in pixels.

    The square has the longer side of the image; LLaVA-1.5 was trained on boxes of the padded image.

    >>> box_square("[0.25, 0.5, 0.75, 1.0]", Sample(id="1", image_ids=("7",), fields={"width": 50, "height": 100}))
    (0.0, 50.0, 50.0, 100.0)
    """
    found = _four_numbers(output)
    if found is None:
        return None
    width, height = _size(sample)
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    x1, y1, x2, y2 = (value * side for value in found)
    return x1 - left, y1 - top, x2 - left, y2 - top


def box_resized(output: str, sample: Sample, factor: int, least: int, most: int) -> Box | None:
    """The first four numbers in brackets, in pixels of the image as Qwen2.5-VL's processor resizes it, in its own.

    Its name carries that processor's three numbers, such as `box_resized:28:3136:12845056`.

    Args:
        output: The raw text.
        sample: The question; its fields say the size of the image.
        factor: Both sides become multiples of this (patch size x merged patches).
        least: Fewest pixels after resizing.
        most: Most pixels after resizing.

    >>> sample = Sample(id="1", image_ids=("7",), fields={"width": 640, "height": 427})
    >>> box_resized('{"bbox_2d": [0, 210, 644, 420]}', sample, 28, 3136, 12845056)
    (0.0, 213.5, 640.0, 427.0)
    """
    found = _four_numbers(output)
    if found is None:
        return None
    width, height = _size(sample)
    seen_width, seen_height = _resized(width, height, factor, least, most)
    x1, y1, x2, y2 = found
    return x1 / seen_width * width, y1 / seen_height * height, x2 / seen_width * width, y2 / seen_height * height


_OPTIONS = frozenset({"A", "B", "C", "D", "E"})

_TEXT: Mapping[str, Callable[[str, Sample], str]] = {
    function.__name__: function
    for function in (
        none, strip, lower, first_line, first_comma, first_sentence, rstrip_period, llava_gqa, qwen_gqa,
        openflamingo_vqa, openflamingo_caption, lemmatize,
    )
}  # fmt: skip
_STEPS: Mapping[str, Callable[..., Json]] = {
    **_TEXT,
    **{f.__name__: f for f in (option_letter, yes_no, box_999, box_1000, box_0_1, box_pixels, box_square, box_resized)},
}

_NUMBER = r"([-+]?(?:[0-9]{1,9}(?:\.[0-9]{0,18})?|\.[0-9]{1,18}))"
_COMMA = r"\s{0,3}[,;\s]\s{0,3}"
_NEW_PAIR = r"\s{0,3}[)\]}]\s{0,3}[,;]?\s{0,3}[(\[{]\s{0,3}"
# "[1, 2, 3, 4]", "(1,2),(3,4)", "[[1, 2], [3, 4]]". Every repetition is bounded, so the search stays linear.
_FOUR = re.compile(
    rf"[(\[{{]\s{{0,3}}{_NUMBER}{_COMMA}{_NUMBER}(?:{_COMMA}|{_NEW_PAIR}){_NUMBER}{_COMMA}{_NUMBER}\s{{0,3}}[)\]}}]"
)


def _function(step: str) -> Callable[[str, Sample], Json]:
    """Return the function of one step, with the numbers that stand in its name."""
    name, colon, numbers = step.partition(":")
    if name not in _STEPS or (colon and name != box_resized.__name__):
        raise ConfigError(unknown("extraction", step, _STEPS, 'several may be joined by "+"'))
    if name != box_resized.__name__:
        return _STEPS[name]
    found = re.fullmatch(r"([1-9][0-9]{0,8}):([1-9][0-9]{0,8}):([1-9][0-9]{0,8})", numbers)
    if found is None or int(found[2]) > int(found[3]):
        raise ConfigError(
            f"extract={step}: box_resized needs the three numbers by which images are resized, as in "
            "box_resized:28:3136:12845056 (sides are multiples of 28; 3136 to 12845056 pixels)"
        )
    return functools.partial(box_resized, factor=int(found[1]), least=int(found[2]), most=int(found[3]))


def _resized(width: float, height: float, factor: int, least: int, most: int) -> tuple[int, int]:
    """Return the size that Qwen's image processors give an image (`smart_resize` in transformers' qwen2_vl)."""
    wide, high = round(width / factor) * factor, round(height / factor) * factor
    if wide * high > most:
        scale = math.sqrt(width * height / most)
        wide, high = (max(1, math.floor(side / scale / factor)) * factor for side in (width, height))
    elif wide * high < least:
        scale = math.sqrt(least / (width * height))
        wide, high = (math.ceil(side * scale / factor) * factor for side in (width, height))
    return wide, high


def _qwen_corners(output: str) -> tuple[float, float, float, float] | None:
    r"""Return the numbers of the first match of `\((.*?)\),\((.*?)\)`, in time linear in the output.

    The leftmost match of a line starts at its first "(", goes on to the first "),(" after it, and ends at the next ")".
    """
    for line in output.split("\n"):
        start = line.find("(")
        middle = line.find("),(", start + 1)
        end = line.find(")", middle + 3)
        if -1 in (start, middle, end):
            continue
        try:
            (x1, y1), (x2, y2) = (
                [float(number) for number in corner.split(",")]
                for corner in (line[start + 1 : middle], line[middle + 3 : end])
            )
        except ValueError:  # not two numbers in each: the script gives up here, whatever else follows
            return None
        return x1, y1, x2, y2
    return None


def _four_numbers(output: str) -> Box | None:
    found = _FOUR.search(output)
    return (float(found[1]), float(found[2]), float(found[3]), float(found[4])) if found else None


def _scaled(output: str, sample: Sample, grid: float) -> Box | None:
    found = _four_numbers(output)
    if found is None:
        return None
    width, height = _size(sample)
    x1, y1, x2, y2 = found
    return x1 / grid * width, y1 / grid * height, x2 / grid * width, y2 / grid * height


def _size(sample: Sample) -> tuple[float, float]:
    try:
        width, height = float(sample.fields["width"]), float(sample.fields["height"])
    except KeyError as error:
        raise ConfigError(
            f"sample {sample.id} does not say the {error.args[0]} of its image, so a box cannot be turned into pixels; "
            "choose another extract= for this task"
        ) from error
    if not (width > 0 and height > 0):
        raise ConfigError(f"sample {sample.id} says that its image has {width:g} x {height:g} pixels; mend the data")
    return width, height


def _f32(value: float) -> float:
    """Round to single precision; too large becomes infinite."""
    return ctypes.c_float(value).value


def _no_spacy() -> str | None:
    if not importlib.util.find_spec("spacy"):
        return "extract=lemmatize needs spaCy: pip install spacy, then python -m spacy download en_core_web_sm"
    if not importlib.util.find_spec("en_core_web_sm"):
        return "extract=lemmatize needs spaCy's model en_core_web_sm: python -m spacy download en_core_web_sm"
    return None


@functools.lru_cache(maxsize=1)
def _spacy() -> Any:
    if reason := _no_spacy():
        raise UnsupportedError(reason)
    import spacy  # type: ignore[import-not-found, unused-ignore]

    return spacy.load("en_core_web_sm")
