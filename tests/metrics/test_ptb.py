"""The tokenizer in Python: the context rule, the guard, and (where there is Java) the official program itself."""

from __future__ import annotations

import json
import random
import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.errors import MetricError
from evalkit.metrics import ptb
from evalkit.metrics.java import find_java, scorer_file
from tests.strategies import any_text

LINE_BREAKS = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]


def official_lines(captions: list[str], folder: Path) -> list[str]:
    """Return what the official program and the official wrapper's filter make of a file of captions."""
    try:
        java = find_java(None)
    except MetricError as error:
        pytest.skip(str(error))
    path = folder / "captions.txt"
    path.write_text("\n".join(captions), encoding="utf-8")
    jar = scorer_file("tokenizer/stanford-corenlp-3.4.1.jar")
    program = [java.program, "-Dfile.encoding=UTF-8", "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer"]
    answer = subprocess.run(
        [*program, "-preserveLines", "-lowerCase", path], capture_output=True, check=True, timeout=120
    )
    lines = answer.stdout.decode("utf-8").split("\n")[: len(captions)]
    return [" ".join(token for token in line.rstrip().split(" ") if token not in ptb.PUNCTUATION) for line in lines]


def coco_captions(split: str) -> list[str]:
    """Return the captions of COCO 2014 that come with SPICE."""
    with zipfile.ZipFile(scorer_file("spice/spice-1.0.jar")) as jar:
        captions = json.loads(jar.read(f"coco/annotations/captions_{split}2014.json"))["annotations"]
    return [each["caption"].replace("\n", " ") for each in captions]


@pytest.mark.java
def test_real_captions_are_the_official_programs(tmp_path: Path) -> None:
    captions = coco_captions("val")[100_000:140_000]
    ours = ptb.tokenize(captions, context="file")
    theirs = official_lines(captions, tmp_path)
    wrong = [each for each in zip(captions, theirs, ours, strict=True) if each[1] != each[2]]
    assert wrong == []
    assert sum(map(ptb.guarded, captions)) / len(captions) > 0.99


@pytest.mark.java
@pytest.mark.long
def test_all_coco_captions_are_the_official_programs(tmp_path: Path) -> None:
    captions = coco_captions("train") + coco_captions("val")
    assert len(captions) == 616_767
    ours = ptb.tokenize(captions, context="file")
    theirs = official_lines(captions, tmp_path)
    wrong = [each for each in zip(captions, theirs, ours, strict=True) if each[1] != each[2]]
    assert [caption for caption, _, _ in wrong if ptb.guarded(caption)] == []
    assert len(wrong) <= 1


KINDS = (
    "a A man dog's the The don't we'll I've girls' T t U.S. a.m. St no No etc e-mail T-shirt 5 1,000 10:30 1st 90s 5x7 "
    "$5 50% and/or #1 TV's cannot gonna vs Ave Dr co tex fig in In It He B b ft Inc mother's 24/7 Mr p.m b&w 2.5 650"
)
WORDS = KINDS.split()
ENDS = ["", "", "", ".", ",", "!", "?", ";", ":", '"', '."', '",', ")", "'s", ".,"]


@pytest.mark.java
def test_made_up_captions_inside_the_guard_are_the_official_programs(tmp_path: Path) -> None:
    draw = random.Random(11)
    captions: list[str] = []
    while len(captions) < 20_000:
        chunks = [
            draw.choice(["", "", '"', "("]) + draw.choice(WORDS) + draw.choice(ENDS) for _ in range(draw.randint(1, 7))
        ]
        if ptb.guarded(" ".join(chunks)):
            captions.append(" ".join(chunks))
    ours = ptb.tokenize(captions, context="file")
    theirs = official_lines(captions, tmp_path)
    assert [each for each in zip(captions, theirs, ours, strict=True) if each[1] != each[2]] == []


@pytest.mark.java
def test_the_worker_agrees_with_the_official_file_outside_the_guard(tmp_path: Path) -> None:
    captions = [
        "so cute :-) www.x.com",
        "a letter T.",
        "A man's 6' 4\" {door}",
        "<b>bold</b> & co.",
        "café №5 ½",
        "they'll",
    ]
    assert not any(map(ptb.guarded, captions[::2]))
    living = ptb.tokenizer_worker(find_java(None))
    following = [*captions[1:], None]
    answers = ptb.official(living, list(zip(captions, following, strict=True)))
    assert answers == official_lines(captions, tmp_path)


@pytest.mark.java
def test_a_tag_cannot_reach_into_the_next_caption(tmp_path: Path) -> None:
    official_lines(["a"], tmp_path)  # skips without Java
    living = ptb.tokenizer_worker(find_java(None))
    assert ptb.official(living, [("a <b", "c> d")]) == ["a < b"]


@pytest.mark.parametrize("line_break", LINE_BREAKS)
def test_a_line_break_inside_a_caption_moves_no_other_caption(line_break: str) -> None:
    captions = ["a red bus", f"two dogs{line_break}and a cat", "a blue kite"]
    assert ptb.tokenize(captions, context="file") == ["a red bus", "two dogs and a cat", "a blue kite"]


@pytest.mark.parametrize(
    ("following", "tokens"),
    [("A man", "the letter t"), ("a man", "the letter t."), ("Ann runs", "the letter t."), ("\n", "the letter t.")],
)
def test_the_next_caption_decides_a_single_letter_with_a_full_stop(following: str, tokens: str) -> None:
    assert ptb.tokenize(["the letter T.", following, "x"], context="file")[0] == tokens
    assert ptb.tokenize(["the letter T.", following, "x"])[0] == "the letter t."


def test_an_empty_line_between_does_not_hide_the_next_caption() -> None:
    assert ptb.tokenize(["the letter T.", " ", "", "A man"], context="file") == ["the letter t", "", "", "a man"]


def test_the_last_caption_of_a_file_ends_with_the_file() -> None:
    assert ptb.tokenize(["we'll", "we'll"], context="file") == ["we 'll", "we ll"]
    assert ptb.tokenize(["we'll "]) == ["we 'll"]


def test_brackets_stay_as_in_published_scores() -> None:
    assert ptb.tokenize(["a (red) [bus]"]) == ["a -lrb- red -rrb- -lsb- bus -rsb-"]


@given(st.lists(any_text, max_size=6), st.sampled_from(["file", "isolated"]))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_one_clean_line_each(captions: list[str], context: ptb.Context) -> None:
    tokenized = ptb.tokenize(captions, context=context)
    assert len(tokenized) == len(captions)
    for line in tokenized:
        assert not ptb.LINE_BREAKS.search(line)
        assert line == " ".join(token for token in line.split(" ") if token)
        assert not set(line.split(" ")) & ptb.PUNCTUATION
        line.encode("utf-8")


@given(st.lists(st.text(alphabet="aT. 'sn\"5,", max_size=12), min_size=2, max_size=5), st.randoms())
@settings(max_examples=200, deadline=None)
def test_isolated_captions_do_not_know_each_other(captions: list[str], order: random.Random) -> None:
    places = list(range(len(captions)))
    order.shuffle(places)
    tokenized = ptb.tokenize(captions)
    assert ptb.tokenize([captions[place] for place in places]) == [tokenized[place] for place in places]
