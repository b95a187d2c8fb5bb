"""Answer extraction: each rule, chains of them, and outputs that hold no answer."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import ConfigError, UnsupportedError
from evalkit.extract import describe, extract, extractor, preflight
from evalkit.types import Sample
from tests.strategies import any_text

SAMPLE = Sample(id="1", image_ids=("7",), fields={"width": 640, "height": 480}, reference={"box": [1, 2, 3, 4]})


RESIZED = "box_resized:28:3136:12845056"
"""Qwen2.5-VL: 640 x 480 pixels become 644 x 476."""


@pytest.mark.parametrize(
    ("name", "output", "answer"),
    [
        ("none", " A. \n", " A. \n"),
        ("strip", "\t A dog. \n", "A dog."),
        ("lower", "A Dog", "a dog"),
        ("first_line", "\n  \n a dog \n Question: what", "a dog"),
        ("first_line", "a\u2028b", "a\u2028b"),
        ("first_line", " \n ", ""),
        ("first_comma", "red, blue", "red"),
        ("first_sentence", "It is 1.5 m. It is red.", "It is 1.5 m"),
        ("rstrip_period", "no...", "no"),
        ("llava_gqa", "Yes.", "yes"),
        ("strip+rstrip_period+lower", " Yes. ", "yes"),
        ("openflamingo_vqa", "a, b", "a"),
        ("openflamingo_vqa", "red Question: what", "red "),
        ("openflamingo_vqa", "1,000 Short", "1,000 "),
        ("openflamingo_caption", 'a "red" dog Output: a cat', "a red dog "),
        ("qwen_gqa", " It is a dog. Yes", "dog"),
        ("qwen_gqa", "banana split", "split"),
        ("qwen_gqa", "a a b", ""),
        ("qwen_gqa", "The side of the road", "side"),
        ("qwen_gqa", "piece of cake", "piece"),
        ("option_letter", "A", "A"),
        ("option_letter", "A. yes", "A"),
        ("option_letter", "A.", None),
        ("option_letter", "F", None),
        ("option_letter", "The answer is B. BECAUSE: The answer is C.", None),
        ("option_letter", "So The answer is B. BECAUSE", "B"),
        ("yes_no", "Well, NO.", "no"),
        ("yes_no", "unknown", None),
        ("box_999", "(0,0),(999,999)", (0.0, 0.0, 640.0, 480.0)),
        ("box_999", "<box>(999,0),(0,999)</box>", (640.0, 0.0, 0.0, 480.0)),
        ("box_999", "(1,2), (3,4)", None),
        ("box_999", "(1,2),(3,x) (0,0),(9,9)", None),
        ("box_999", "(1,2),\n(3,4)\n(0,0),(999,999)", (0.0, 0.0, 640.0, 480.0)),
        ("box_999", "[1,2,3,4]", None),
        ("box_1000", "<|box_start|>(100,200),(500,1000)<|box_end|>", (64.0, 96.0, 320.0, 480.0)),
        ("box_1000", "[[100, 200, 500, 1000]]", (64.0, 96.0, 320.0, 480.0)),
        ("box_0_1", "It is at [0.5, 0.25, 1, 0.5].", (320.0, 120.0, 640.0, 240.0)),
        ("box_0_1", "0.5, 0.25, 1, 0.5", None),
        ("box_pixels", '{"bbox_2d": [10, 20.5, 30, -4], "label": "dog"}', (10.0, 20.5, 30.0, -4.0)),
        ("box_square", "[0.0, 0.125, 1.0, 0.875]", (0.0, 0.0, 640.0, 480.0)),
        ("box_square", "0.0, 0.125, 1.0, 0.875", None),
        (RESIZED, '```json\n[{"bbox_2d": [0, 0, 644, 476], "label": "a (red) dog"}]\n```', (0.0, 0.0, 640.0, 480.0)),
        (RESIZED, '{"bbox_2d": [1, 2, 3], "label": "dog"}', None),
        ("box_resized:28:3136:200704", "[0, 0, 504, 364]", (0.0, 0.0, 640.0, 480.0)),
        ("box_resized:28:1000000:2000000", "[0, 0, 1176, 868]", (0.0, 0.0, 640.0, 480.0)),
        ("box_pixels", "[1, 2, 3]", None),
        ("box_pixels", "[1, 2, 3, 4, 5]", None),
        ("box_pixels", "[1, 2, 3, 4", None),
    ],
)
def test_rules(name: str, output: str, answer: object) -> None:
    assert extract(name, output, SAMPLE) == answer


def test_boxes_do_not_look_at_the_truth() -> None:
    other = Sample(id="1", image_ids=("7",), fields=SAMPLE.fields, reference={"box": [9, 9, 99, 99]})
    for name in ("box_999", "box_1000", "box_0_1", "box_pixels", "box_square", RESIZED):
        assert extract(name, "(1,2),(3,4)", SAMPLE) == extract(name, "(1,2),(3,4)", other)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="no extraction 'strp'; did you mean 'strip'"):
        extract("lower+strp", "x", SAMPLE)
    with pytest.raises(ConfigError, match="no extraction ''"):
        extractor("strip+")


@pytest.mark.parametrize(
    "name",
    ["box_resized", "box_resized:", "box_resized:28", "box_resized:28:9:4", "box_resized:0:1:2", "box_resized:a"],
)
def test_a_resized_box_says_how_it_was_resized(name: str) -> None:
    with pytest.raises(ConfigError, match="box_resized needs the three numbers"):
        extractor(name)


def test_only_box_resized_takes_numbers() -> None:
    with pytest.raises(ConfigError, match="no extraction 'box_1000:28'"):
        extractor("box_1000:28")


def test_nothing_follows_a_step_that_gives_no_text() -> None:
    with pytest.raises(ConfigError, match='yes_no gives no text, so nothing can follow it, but "lower" does'):
        extractor("yes_no+lower")


def test_a_box_needs_the_size_of_its_image() -> None:
    sample = Sample(id="12", image_ids=("7",), fields={"width": 640})
    with pytest.raises(ConfigError, match="sample 12 does not say the height of its image"):
        extract("box_999", "(1,2),(3,4)", sample)
    assert extract("box_pixels", "(1,2),(3,4)", sample) == (1, 2, 3, 4)
    empty = Sample(id="13", image_ids=("7",), fields={"width": 0, "height": 480})
    with pytest.raises(ConfigError, match="sample 13 says that its image has 0 x 480 pixels"):
        extract(RESIZED, "(1,2),(3,4)", empty)


def test_lemmas_need_spacy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"lemmatize needs spaCy.*spacy download en_core_web_sm"):
        extract("lemmatize", "two dogs running", SAMPLE)
    assert "needs spaCy:" in (preflight("first_line+lemmatize") or "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "spacy")
    assert "needs spaCy's model" in (preflight("lemmatize+lower") or "")
    assert preflight("first_line") is None


def test_only_nouns_and_verbs_become_lemmas(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Token:
        text: str
        lemma_: str
        pos_: str

    words = [Token("Two", "two", "NUM"), Token("dogs", "dog", "NOUN"), Token("ran", "run", "VERB")]
    monkeypatch.setattr("evalkit.extract._spacy", lambda: lambda text: words)
    assert extract("lemmatize", "Two dogs ran", SAMPLE) == "Two dog run"


def test_every_extraction_is_described_in_a_line() -> None:
    assert all(line and len(line) < 120 and line[-1] in ".)" for line in describe().values()), describe()


NAMES = [*sorted(set(describe()) - {"lemmatize", "box_resized"}), RESIZED]


@given(output=any_text, name=st.sampled_from(NAMES))
def test_no_string_crashes_it(output: str, name: str) -> None:
    answer = extract(name, output, SAMPLE)
    if answer is None:
        assert name.startswith("box_") or name in ("yes_no", "option_letter")
    elif name.startswith("box_"):
        assert [type(value) for value in answer] == [float] * 4
    else:
        assert isinstance(answer, str)


def official_corners(output: str) -> tuple[float, ...] | None:
    """The pattern and the loop of evaluate_grounding.py, in the words of our types."""
    found = re.findall(r"\((.*?)\),\((.*?)\)", output)
    try:
        first, second = ([float(number) for number in corner.split(",")] for corner in found[0])
    except (IndexError, ValueError):
        return None
    return (*first, *second) if len(first) == len(second) == 2 else None


@given(output=st.text("(),1 \n", max_size=40) | st.from_regex(r"[(\n]*\(\d,\d\),\((\d,\d|x|\d)\)[(),\n\d]*"))
def test_the_linear_search_finds_what_the_pattern_finds(output: str) -> None:
    sample = Sample(id="1", image_ids=("7",), fields={"width": 999, "height": 999})
    corners = official_corners(output)
    answer = extract("box_999", output, sample)
    assert answer == (None if corners is None else pytest.approx(corners, rel=1e-6))


@given(data=st.data(), width=st.integers(1, 3000), height=st.integers(1, 3000))
def test_a_box_comes_back_within_a_step_of_its_grid(data: st.DataObject, width: int, height: int) -> None:
    """Written as a model writes it, rounded to its grid, and read again."""
    sample = Sample(id="1", image_ids=("7",), fields={"width": width, "height": height})
    box = [data.draw(st.floats(0, side)) for side in (width, height) * 2]
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    written = {
        # name: (text, step in pixels along x and y)
        "box_1000": ("<|box_start|>({:.0f},{:.0f}),({:.0f},{:.0f})<|box_end|>", (1000, 1000), (0, 0)),
        "box_0_1": ("[{:.2f}, {:.2f}, {:.2f}, {:.2f}]", (1, 1), (0, 0)),
        "box_square": ("[{:.2f}, {:.2f}, {:.2f}, {:.2f}]", (width / side, height / side), (left, top)),
    }
    for name, (form, grid, (right, down)) in written.items():
        scale = grid[0] / width, grid[1] / height
        numbers = [
            (value + shift) * factor for value, shift, factor in zip(box, (right, down) * 2, scale * 2, strict=True)
        ]
        step = 1 if name == "box_1000" else 0.01
        answer = extract(name, form.format(*numbers), sample)
        for found, value, factor in zip(answer, box, scale * 2, strict=True):
            assert abs(found - value) <= step / factor, name


@pytest.mark.parametrize(
    "output", ["(" * 300_000, "),(" * 100_000, "[1," * 100_000, "[" + " " * 300_000, "a, " * 99_999]
)
def test_time_is_linear_in_the_output(output: str) -> None:
    start = time.perf_counter()
    for name in NAMES:
        extract(name, output, SAMPLE)
    assert time.perf_counter() - start < 5
