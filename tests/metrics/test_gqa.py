"""GQA: what counts for which score, and what is said when the data for one is not there."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.metrics.gqa import belongs, consistency, distribution, gqa_metric, gqa_scores, grounding, num_steps
from evalkit.types import Answered, MetricSettings, Sample, Scores
from tests.strategies import any_text


def asked(
    question_id: str, answer: str, prediction: str, *, structural: str = "query", detailed: str = "color",
    group: str | None = None, entailed: tuple[str, ...] = (), balanced: bool = True, choices: Any = None,
) -> Answered:  # fmt: skip
    reference = {
        "answer": answer, "is_balanced": balanced, "choices": choices, "entailed": list(entailed),
        "types": {"structural": structural, "semantic": "attr", "detailed": detailed},
        "groups": {"global": group, "local": None},
        "semantic": [{"operation": "select", "argument": "dog"}, {"operation": "query", "argument": "color"}],
    }  # fmt: skip
    sample = Sample(id=question_id, image_ids=("7",), fields={"question": "What color is it?"}, reference=reference)
    return Answered(sample=sample, answer=prediction)


def score(*answered: Answered) -> Scores:
    return gqa_metric().compute(answered, MetricSettings())


def test_answers_are_compared_as_they_are() -> None:
    assert score(asked("1", "red", "Red"), asked("2", "red", "red.")).aggregate["accuracy"] == 0


def test_query_is_open_and_the_rest_is_binary() -> None:
    scores = score(asked("1", "red", "red"), asked("2", "no", "yes", structural="verify"))
    assert (scores.aggregate["open"], scores.aggregate["binary"], scores.aggregate["accuracy"]) == (1, 0, 0.5)
    assert scores.per_sample["binary"] == (None, 0.0)


def test_unbalanced_questions_are_not_scored_but_serve_consistency() -> None:
    scores = score(
        asked("1", "red", "red", entailed=("1", "2", "3")),
        asked("2", "yes", "yes", balanced=False),
        asked("3", "no", "yes", balanced=False),
    )
    assert scores.aggregate["accuracy"] == 1
    assert scores.aggregate["consistency"] == 0.5
    assert scores.per_sample["accuracy"] == (1.0, None, None)
    assert scores.details["structural"] == {"query": {"accuracy": 1.0, "n": 1}}


def test_consistency_without_the_entailed_questions_says_what_it_needs() -> None:
    scores = score(asked("1", "red", "red", entailed=("2",)))
    assert "consistency" not in scores.aggregate
    assert "such as 2" in scores.unavailable["consistency"]


def test_a_wrong_question_needs_no_entailed_ones() -> None:
    scores = score(asked("1", "red", "blue", entailed=("2",)), asked("3", "red", "red", entailed=("3",)))
    assert scores.unavailable["consistency"] == "no question counts towards it"
    assert consistency("1", ["2"], {"1": False}) is None


def test_validity_needs_a_choices_file() -> None:
    choices = {"valid": ["red", "blue"], "plausible": ["red"]}
    scores = score(asked("1", "red", "blue", choices=choices))
    assert (scores.aggregate["validity"], scores.aggregate["plausibility"]) == (1, 0)
    scores = score(asked("1", "red", "blue", choices=choices), asked("2", "red", "red"))
    assert "1 of 2 questions have no entry" in scores.unavailable["validity"]
    assert belongs("shape", ["red"], detailed="twoCommon")
    assert not belongs("red", ["red"], detailed="twoCommon")


def test_distribution_weighs_groups_by_size() -> None:
    # color: red 3 times, predicted twice: (2 - 3)^2 / 3; animal: dog once, never predicted: 1.
    rows = [("color", "red", "red"), ("color", "red", "red"), ("color", "red", "x"), ("animal", "dog", "cat")]
    assert distribution(rows) == pytest.approx((1 / 3 * 3 + 1 * 1) / 4 / 100)
    assert distribution([(None, "red", "red")]) is None
    assert "distribution" in score(asked("1", "red", "red")).unavailable
    assert score(asked("1", "red", "red", group="color")).aggregate["distribution"] == 0


def test_steps_leave_out_those_that_ask_for_the_answer() -> None:
    assert num_steps([{"operation": "exist", "argument": "?"}, {"operation": "choose name", "argument": "a|b"}]) == 0
    assert num_steps([{"operation": "query", "argument": "name"}, {"operation": "query", "argument": "color"}]) == 1


def test_grounding_reads_the_map_by_columns() -> None:
    top_left, right = [[0.7, 0.1], [0.1, 0.1]], (0.5, 0.0, 1.0, 1.0)
    assert grounding(top_left, [(0.0, 0.0, 0.5, 0.5)]) == pytest.approx(0.7)
    assert grounding([[0.4, 0.4], [0.1, 0.1]], [right]) == pytest.approx(0.2)
    assert grounding(top_left, []) == 0


def test_grounding_is_a_score_where_there_are_maps() -> None:
    answered = asked("1", "red", "red")
    answered.sample.reference["annotations"] = {"question": {"0": "8"}, "fullAnswer": {}}
    graph = {"width": 10, "height": 10, "objects": {"8": {"x": 0, "y": 0, "w": 5, "h": 10}}}
    scores = gqa_scores([answered], MetricSettings(), attentions={"1": [[1.0]]}, scene_graphs={"7": graph})
    assert scores.aggregate["grounding"] == 0.5
    assert "attention maps" in score(answered).unavailable["grounding"]


def test_only_the_answer_is_required() -> None:
    sample = Sample(id="1", image_ids=("7",), reference={"answer": "red"})
    scores = score(Answered(sample=sample, answer="red"))
    assert scores.aggregate == {"accuracy": 1.0}
    assert scores.unavailable.keys() == {
        "binary", "open", "validity", "plausibility", "consistency", "grounding", "distribution",
    }  # fmt: skip
    assert "accuracy" in score().unavailable


@given(rows=st.lists(st.tuples(any_text, any_text, st.booleans()), min_size=1, max_size=8), seed=st.integers(0, 100))
def test_order_changes_nothing_and_no_string_crashes_it(rows: list[tuple[str, str, bool]], seed: int) -> None:
    answered = [
        asked(str(i), answer, prediction, group="g", balanced=balanced, entailed=("0",))
        for i, (answer, prediction, balanced) in enumerate(rows)
    ]
    shuffled = random.Random(seed).sample(answered, len(answered))
    one, other = score(*answered), score(*shuffled)
    assert one.aggregate.keys() == other.aggregate.keys()
    assert all(one.aggregate[name] == pytest.approx(other.aggregate[name]) for name in one.aggregate)
    assert one.unavailable == other.unavailable


@given(answers=st.lists(any_text, min_size=1, max_size=8))
def test_perfect_answers_score_the_maximum(answers: list[str]) -> None:
    choices = {"valid": answers, "plausible": answers}
    ids = tuple(map(str, range(len(answers) + 1)))[: len(answers)]
    scores = score(
        *(asked(i, text, text, group="g", choices=choices, entailed=ids) for i, text in zip(ids, answers, strict=True))
    )
    best = dict.fromkeys(scores.aggregate, 1.0) | {"distribution": 0.0}
    assert scores.aggregate == best
