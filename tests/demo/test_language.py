"""What is said of a scene is true of it, and of one thing only."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.demo.annotators import five_twice, ten_answers
from evalkit.demo.language import captions, expressions
from evalkit.demo.questions import Question, knowledge_questions, text_questions, vqa_questions
from evalkit.demo.scenes import COLORS, HELD_OUT, NOVEL_SHAPES, familiar, make_scene, relation_of
from evalkit.demo.shapes import SHAPES
from evalkit.demo.words import ANIMALS, FRUITS, JEWELS

scenes = st.integers(0, 10**9).map(make_scene)


def things_called(scene, words):
    """Return the things that "small red star" or "object" can mean."""
    found = list(scene.things)
    for word in words.split():
        if word not in ("object", "the"):
            found = [thing for thing in found if word in (thing.size, thing.color, thing.shape)]
    return found


def meant(scene, phrase):
    """Return what "the star above the red object to the left of the ring" means, read from its end."""
    parts = re.split(r" (to the left of|to the right of|above|below) ", phrase)
    (anchor,) = things_called(scene, parts[-1])
    for words, relation in zip(parts[-3::-2], parts[-2::-2], strict=True):
        candidates = [t for t in things_called(scene, words) if t is not anchor and relation_of(t, anchor) == relation]
        (anchor,) = candidates
    return anchor


@given(scenes, st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_what_is_asked_by_name_has_one_answer(scene, seed):
    for question in vqa_questions(scene, random.Random(seed), 8):
        text = question.text
        if match := re.fullmatch(r"What color is (the .*)\?", text):
            if match[1] != "the background":
                assert meant(scene, match[1]).color == question.answer
        elif match := re.fullmatch(r"What is the shape of (the .*)\?", text):
            assert meant(scene, match[1]).shape == question.answer
        elif match := re.fullmatch(r"Is (the .*) small or large\?", text):
            assert meant(scene, match[1]).size == question.answer
        elif match := re.fullmatch(r"How many objects are (to the \w+ of|above|below) (the .*)\?", text):
            anchor = meant(scene, match[2])
            expected = sum(relation_of(t, anchor) == match[1] for t in scene.things if t is not anchor)
            assert str(expected) == question.answer
        elif match := re.fullmatch(r"Is there an? (.*)\?", text):
            assert (question.answer == "yes") == bool(things_called(scene, match[1]))
        elif match := re.fullmatch(r"Are there more (.*) than (.*)\?", text):
            more, fewer = (len(things_called(scene, singular(words))) for words in match.groups())
            assert (question.answer == "yes") == (more > fewer)


def singular(words):
    words = words.removesuffix("s")
    return words.removesuffix("e") if words.endswith("crosse") else words


@given(scenes, st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_knowledge_takes_the_picture_and_the_fact(scene, seed):
    for question in knowledge_questions(scene, random.Random(seed), 4):
        for kind, facts in (("fruit", FRUITS), ("animal", ANIMALS), ("jewel", JEWELS)):
            if match := re.fullmatch(rf"Which {kind} has the color of (the .*)\?", question.text):
                assert (question.answer, question.other) == facts[meant(scene, match[1]).color]


@given(scenes, st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_an_expression_of_relation_or_attributes_means_its_thing(scene, seed):
    for thing in scene.things:
        for text, kind in expressions(scene, thing, random.Random(seed)):
            if kind in ("attribute", "relation"):
                assert meant(scene, text) is thing


@given(scenes)
@settings(max_examples=100, deadline=None)
def test_captions_name_things_that_are_there(scene):
    for caption in captions(scene, random.Random(scene.seed)):
        for color, shape in re.findall(rf"({'|'.join(COLORS)}) ({'|'.join(SHAPES)})\b", caption):
            assert scene.where(color=color, shape=shape)


@pytest.mark.parametrize("seed", range(30))
def test_domains_are_held_out_combinations(seed):
    near, out, known = (make_scene(seed, domain) for domain in ("near", "out", "in"))
    assert any((thing.color, thing.shape) in HELD_OUT for thing in near.things)
    assert all(thing.shape not in NOVEL_SHAPES for thing in near.things)
    assert all(thing.shape in NOVEL_SHAPES for thing in out.things)
    assert familiar(known)
    assert not familiar(near)


def test_the_sign_is_read_as_it_stands():
    scene = make_scene(5, "any", True)
    assert scene.sign is not None
    texts = text_questions(scene, random.Random(0))
    assert texts[0].answer == scene.sign.text
    assert text_questions(make_scene(5, "any", False), random.Random(0)) == []


def test_most_people_say_the_right_thing():
    question = Question("What color is the star?", "red", "what color is the")
    for seed in range(200):
        answers = [answer["answer"].lower() for answer in ten_answers(question, random.Random(seed))]
        assert answers.count("red") >= 6
        stems = [answer["answer"] for answer in five_twice(question, random.Random(seed))]
        assert stems.count("red") >= 6
