"""A template and a sample make a prompt.

Templates hold plain words around {fields}; chat wrappers and image tokens are the adapter's business. A *style* names
the form of a prompt (never a model): the same style is there for every task, so that a model names the form it was
trained with once, and a protocol only where a paper deviates.
"""

from __future__ import annotations

import functools
import re
import string
import sys
from collections.abc import Callable, Mapping

from evalkit.errors import ConfigError, unknown
from evalkit.types import Sample, Task

VQA_PROMPTS: Mapping[str, str] = {
    "completion": "Question: {question} Answer:",
    "short-answer": "Question: {question} Short answer:",
    "bare": "{question} Answer:",
    "question": "{question}",
    "chat": "{question}\nAnswer the question using a single word or phrase.",
}
"""Open questions, by style: as BLIP-2 with OPT, BLIP-2 with FlanT5, Qwen-VL, BLIP and LLaVA-1.5 were asked."""

CAPTION_PROMPTS: Mapping[str, str] = {
    "completion": "a photo of",
    "short-answer": "A short image caption.",
    "bare": "Describe the image in English:",
    "describe": "Describe the image in English:",
    "question": "",
    "chat": "Provide a one-sentence caption for the provided image.",
}
"""Captions, by style: as BLIP-2, InstructBLIP, Qwen-VL (twice), a captioner without prompt, and LLaVA were asked."""


def fill(task: Task, sample: Sample) -> str:
    """Return what the model is asked about a sample.

    Raises:
        ConfigError: The template names a field the sample does not have, is more than words and {fields}, or compares
            options in some of its lines only.

    >>> sample = Sample(id="1", image_ids=("7",), fields={"question": "What colour is it?"})
    >>> fill_template("Question: {question} Answer:", sample, question_filter="blip")
    'Question: what colour is it? Answer:'
    """
    # One copy of what many samples are asked: the templates of a classifier are long.
    return sys.intern(fill_template(task.template, sample, question_filter=task.question_filter))


def fill_template(template: str, sample: Sample, *, question_filter: str | None = None) -> str:
    """Return a template with the sample's fields in it, the question cleaned first where a filter is set."""
    values: Mapping[str, str | int] = sample.fields
    if sample.options:
        # Filled in option by option when the model is asked; see `choice.py`.
        values = {**values, "option": "{option}"}
        _check_lines(template)
    names = fields_of(template)
    absent = [name for name in names if name not in values]
    if absent:
        fields = ", ".join(f"{{{name}}}" for name in sorted(values)) or "none"
        raise ConfigError(
            f"the prompt {template!r} names {{{absent[0]}}}, which this task's samples do not have; "
            f"their fields: {fields} (write {{{{ and }}}} for plain braces)"
        )
    if question_filter is not None and "question" in values:
        values = {**values, "question": clean(str(values["question"]), question_filter)}
    return "".join(literal + (str(values[name]) if name is not None else "") for literal, name in _parts(template))


def clean(text: str, name: str | None) -> str:
    """Return a question or a caption as a filter leaves it (None: untouched).

    Raises:
        ConfigError: No filter of that name.
    """
    if name is None:
        return text
    if name not in FILTERS:
        raise ConfigError(unknown("question_filter", name, [*FILTERS, "none"]))
    return FILTERS[name](text)


def fields_of(template: str) -> tuple[str, ...]:
    """Return the fields a template names.

    Raises:
        ConfigError: It is more than words and plain {fields}: attributes, indices, formats, a lone brace.

    >>> fields_of("Question: {question} Answer:")
    ('question',)
    >>> fields_of("{question.__class__}")
    Traceback (most recent call last):
        ...
    evalkit.errors.ConfigError: the prompt '{question.__class__}' may hold words and plain {fields} only, ...
    """
    return tuple(name for _, name in _parts(template) if name is not None)


def in_short(template: str) -> str:
    r"""Return a template as a table shows it: of many that are compared with an image, the first.

    >>> in_short("a photo of a {option}.\nart of the {option}."), in_short("{question}\nAnswer briefly.")
    ('a photo of a {option}. (and 1 more, averaged)', '{question}\nAnswer briefly.')
    """
    first, *others = template.splitlines() or [""]
    return f"{first} (and {len(others)} more, averaged)" if others and "{option}" in template else template


@functools.lru_cache(maxsize=256)
def _check_lines(template: str) -> None:
    bare = [line for line in template.splitlines() if "{option}" not in line]
    if bare and "{option}" in template:
        raise ConfigError(
            f"the prompt's line {bare[0]!r} has no {{option}}: where options are compared with an image, each line "
            "is a template of its own"
        )


@functools.lru_cache(maxsize=256)
def _parts(template: str) -> tuple[tuple[str, str | None], ...]:
    """Return (literal, field that follows or None) pairs."""
    rule = f"the prompt {template!r} may hold words and plain {{fields}} only, {{{{ and }}}} for braces"
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"{rule}: {error}") from error
    for _, name, spec, conversion in parsed:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise ConfigError(
                f"{rule}; {{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}} is more"
            )
    return tuple((literal, name) for literal, name, _, _ in parsed)


_PUNCTUATION = re.compile(r'[.!"()*#:;~]')
_MAX_WORDS = 50


def _blip(question: str) -> str:
    """Clean a question as LAVIS's BlipQuestionProcessor does.

    >>> _blip('Is this "A. Cat"?  ')
    'is this a cat?'
    """
    words = _PUNCTUATION.sub("", question.lower()).rstrip(" ").split(" ")
    return " ".join(words[:_MAX_WORDS])


def _blip_caption(caption: str) -> str:
    """Clean a caption as LAVIS's BlipCaptionProcessor does, which is what its retrieval feeds the text encoder.

    >>> _blip_caption("A man; riding.  A wave!")
    'a man riding a wave'
    """
    text = re.sub(r"\s{2,}", " ", _PUNCTUATION.sub(" ", caption.lower()))
    return " ".join(text.rstrip("\n").strip(" ").split(" ")[:_MAX_WORDS])


FILTERS: Mapping[str, Callable[[str], str]] = {"blip": _blip, "blip-caption": _blip_caption}
"""Cleanings of text before it enters a prompt, by the name `question_filter` takes."""
