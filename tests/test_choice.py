"""The likeliest option, and the one nearest to the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest

from evalkit.choice import Chooser
from evalkit.errors import SampleError
from evalkit.types import Prompt


class Rows(tuple[Any, ...]):
    """Images: what each looks like."""

    def select(self, rows: Sequence[int]) -> Rows:
        return Rows(self[row] for row in rows)


class Judge:
    """Gives each option the number that stands for it."""

    def __init__(self, values: dict[str, float]) -> None:
        self.values = values

    def loglikelihood(
        self, encoded: Rows, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        return [[self.values[option] for option in each] for each in options]


class Matcher:
    """Images are given as their vectors (Q, D); a text points where its last word says."""

    DIRECTIONS: ClassVar = {"east": (1.0, 0.0), "north": (0.0, 1.0), "west": (-1.0, 0.0), "nowhere": (math.nan, 0.0)}

    def __init__(self) -> None:
        self.asked: list[str] = []

    def itc_images(self, encoded: Rows) -> Any:
        return np.array(encoded, dtype=np.float32)

    def itc_texts(self, texts: Sequence[str]) -> Any:
        self.asked += texts
        return np.array([self.DIRECTIONS[text.split()[-1]] for text in texts], dtype=np.float32)


def prompt(text: str = "?", *rows: int, sample_id: str = "7") -> Prompt:
    return Prompt(sample_id=sample_id, text=text, rows=rows or (0,))


def choose(model: Any, options: Sequence[str], text: str = "?", image: Any = None) -> str:
    match = "{option}" in text
    (found,) = Chooser(model).choose(Rows([image]), [prompt(text)], [tuple(options)], match=match)
    return found


def test_the_likeliest_is_taken_and_the_first_of_equal_ones() -> None:
    judge = Judge({"yes": -2.0, "no": -1.0, "maybe": -1.0, "never": -math.inf})
    assert choose(judge, ("yes", "no", "maybe")) == "no"
    assert choose(judge, ("maybe", "yes", "no")) == "maybe"
    assert choose(judge, ("never", "yes")) == "yes"
    assert choose(judge, ("never",)) == "never"


def test_each_prompt_has_its_own_options() -> None:
    judge = Judge({"yes": -2.0, "no": -1.0, "red": -9.0})
    prompts = [prompt(sample_id="1"), prompt(sample_id="2")]
    assert Chooser(judge).choose(Rows([None]), prompts, [("yes", "no"), ("red",)], match=False) == ["no", "red"]


def test_no_number_is_no_answer() -> None:
    with pytest.raises(SampleError, match=r"option 'b' of sample 7 no number \(NaN\)"):
        choose(Judge({"a": -1.0, "b": math.nan}), ("a", "b"))
    with pytest.raises(SampleError, match="option 'nowhere' of sample 7"):
        choose(Matcher(), ("east", "nowhere"), "to the {option}", image=[[1.0, 0.0]])


@pytest.mark.parametrize("text", ["?", "to the {option}"])
def test_without_options_there_is_nothing_to_choose(text: str) -> None:
    with pytest.raises(SampleError, match="sample 7 has no options"):
        choose(Judge({}), (), text)


def test_a_model_that_forgets_an_option_is_a_bug() -> None:
    class Short(Judge):
        def loglikelihood(
            self, encoded: Rows, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]
        ) -> list[list[float]]:
            return [each[1:] for each in super().loglikelihood(encoded, prompts, options)]

    with pytest.raises(AssertionError, match="1 of 2 options"):
        choose(Short({"a": 0.0, "b": 0.0}), ("a", "b"))


def test_the_nearest_text_is_taken() -> None:
    for image, expected in (([0.8, 0.6], "east"), ([0.6, 0.8], "north"), ([-1.0, 0.0], "west"), ([0.7, 0.7], "east")):
        assert choose(Matcher(), ("east", "north", "west"), "to the {option}", image=[image]) == expected
    # Several vectors an image: the best of them counts.
    assert choose(Matcher(), ("west", "north"), "to the {option}", image=[[1.0, 0.0], [0.0, 1.0]]) == "north"


def test_templates_are_averaged_and_the_average_has_length_one() -> None:
    class Two(Matcher):
        """The second template turns every text, and "north" most of all, so that its average is short."""

        def itc_texts(self, texts: Sequence[str]) -> Any:
            found = np.array(super().itc_texts([text.rstrip("!") for text in texts]))
            for row, text in enumerate(texts):
                if text.endswith("!"):
                    found[row] = {"east": (1.0, 0.0), "north": (0.8, -0.6)}[text.rstrip("!").split()[-1]]
            return found

    template = "to the {option}\n{option}!"
    # north: ((0, 1) + (0.8, -0.6)) / 2 = (0.4, 0.2), of length 0.45; towards (0.8, 0.6) that is 0.98 if brought to
    # length 1, 0.44 if not, and east is 0.8.
    assert choose(Two(), ("east", "north"), template, image=[[0.8, 0.6]]) == "north"


def test_a_line_without_the_option_is_no_template() -> None:
    with pytest.raises(SampleError, match="breaks a line"):
        choose(Matcher(), ("east",), text="a question\nof two lines: {option}", image=[(1.0, 0.0)])


def test_texts_are_asked_once_for_the_same_options() -> None:
    matcher = Matcher()
    chooser = Chooser(matcher)
    images = Rows([[[1.0, 0.0]], [[0.0, 1.0]]])
    prompts = [prompt("to the {option}", 0), prompt("to the {option}", 1)]
    same = [("east", "north")] * 2
    assert chooser.choose(images, prompts, same, match=True) == ["east", "north"]
    assert chooser.choose(images, prompts[1:], same[1:], match=True) == ["north"]
    assert matcher.asked == ["to the east", "to the north"]
    assert chooser.choose(images, prompts[:1], [("north", "west")], match=True) == ["north"]
    assert matcher.asked[2:] == ["to the north", "to the west"]
    assert chooser.choose(images, [prompt("go {option}", 0)], same[:1], match=True) == ["east"]
    assert matcher.asked[4:] == ["go east", "go north"]


def test_several_images_are_not_compared_with_one_text() -> None:
    images = Rows([[[1.0, 0.0]], [[0.0, 1.0]]])
    with pytest.raises(SampleError, match="sample 7 refers to 2 images"):
        Chooser(Matcher()).choose(images, [prompt("{option}", 0, 1)], [("east",)], match=True)
