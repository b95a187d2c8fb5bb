"""Ten people answer a question: most agree, some mistype, some see it differently."""

from __future__ import annotations

import random
from collections.abc import Sequence

from evalkit.demo.questions import Question
from evalkit.demo.words import PLURALS

_SLIPS = {
    "red": "dark red",
    "orange": "red",
    "yellow": "gold",
    "green": "dark green",
    "blue": "dark blue",
    "purple": "violet",
    "pink": "light red",
    "brown": "dark brown",
    "black": "dark",
    "white": "light gray",
    "gray": "grey",
    "tan": "beige",
    "navy": "dark blue",
    "teal": "green",
    "lavender": "light purple",
    "circle": "round",
    "square": "rectangle",
    "diamond": "square",
    "cross": "plus",
    "ring": "circle",
    "hexagon": "octagon",
    "moon": "crescent",
    "small": "little",
    "large": "big",
    "left": "the left",
    "right": "right side",
}


def slip(question: Question) -> str:
    """Return what somebody answers who does not agree with most."""
    if question.other:
        return question.other
    answer = question.answer
    if answer in ("yes", "no"):
        return "no" if answer == "yes" else "yes"
    if answer.isdigit():
        return str(int(answer) + 1)
    return _SLIPS.get(answer, f"a {answer}")


def ten_answers(question: Question, rng: random.Random) -> list[dict[str, str | int]]:
    """Return ten answers as VQAv2 has them: at least six are the right one."""
    others = rng.choice((0, 0, 0, 0, 1, 1, 2, 3, 4))
    sure = ("yes", "yes", "yes", "maybe", "no") if others else ("yes", "yes", "maybe")
    texts = [slip(question)] * others + [question.answer] * (10 - others)
    if not question.answer.isdigit() and rng.random() < 0.08:
        texts[-1] = question.answer.capitalize()
    rng.shuffle(texts)
    return [
        {
            "answer": text,
            "answer_confidence": rng.choice(sure),
            "answer_id": number,
        }
        for number, text in enumerate(texts, start=1)
    ]


def five_twice(question: Question, rng: random.Random) -> list[dict[str, str | int]]:
    """Return five people's answers, each twice, as OK-VQA has them: `raw_answer` as written, `answer` stemmed."""
    others = rng.choice((0, 0, 1, 1, 2))
    texts: Sequence[str] = [slip(question)] * others + [question.answer] * (5 - others)
    raw = [PLURALS[text] if text in PLURALS and rng.random() < 0.3 else text for text in texts]
    pairs = [pair for pair in zip(raw, texts, strict=True) for _ in range(2)]
    return [
        {"answer_id": number, "raw_answer": written, "answer_confidence": "yes", "answer": stem}
        for number, (written, stem) in enumerate(pairs, start=1)
    ]
