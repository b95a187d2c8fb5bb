"""VQA accuracy: the rules in which the variants differ, and what the task's metric puts together."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import ConfigError, MetricError
from evalkit.metrics.vqa import VARIANTS, Answer, normalise, vqa_accuracy, vqa_metric
from evalkit.types import Answered, MetricSettings, Sample
from tests.strategies import any_text

variants = st.sampled_from(VARIANTS)


def records(*texts: str) -> list[dict[str, object]]:
    return [{"answer": text, "answer_id": i + 1} for i, text in enumerate(texts)]


def asked(sample_id: str, answers: Sequence[Answer], answer: str) -> Answered:
    return Answered(sample=Sample(id=sample_id, image_ids=("7",), reference={"answers": answers}), answer=answer)


@pytest.mark.parametrize(("num_agreeing", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_ten_annotators_give_tenths(variant: str, num_agreeing: int, accuracy: float) -> None:
    answers = ["cat"] * num_agreeing + [f"dog{i}" for i in range(10 - num_agreeing)]
    assert vqa_accuracy("cat", answers, variant=variant) == pytest.approx(accuracy, abs=1e-15)
    assert vqa_accuracy("cat", records(*answers), variant=variant) == pytest.approx(accuracy, abs=1e-15)


def test_official_cleans_nothing_where_all_agree() -> None:
    assert [vqa_accuracy("Yes.", ["yes"] * 10, variant=variant) for variant in VARIANTS] == [0, 1, 1, 1]
    # One who differs, if only in case, and both sides are cleaned.
    assert vqa_accuracy("Yes.", ["yes"] * 9 + ["YES"], variant="official") == 1
    # Newlines, tabs and outer spaces go before the ten are compared.
    assert vqa_accuracy(" yes\n", ["yes"] * 9 + ["yes\t"], variant="official") == 1


def test_legacy_cleans_answers_of_punctuation_only() -> None:
    answers = ["The Cat!"] * 9 + ["dog"]
    assert normalise("The Cat!", answers, variant="legacy").answers[0] == "The Cat "
    assert vqa_accuracy("The Cat!", answers, variant="legacy") == 0
    assert vqa_accuracy("The Cat!", answers, variant="official") == 1


def test_vizwiz_compares_raw_answers_and_curls_apostrophes() -> None:
    assert normalise("dont weve", ["Don't"], variant="vizwiz") == ("don’t we've", ("Don't",))


def test_m4c_deletes_commas_and_splits_possessives_first() -> None:
    ten = ["1,5 men's?"] * 10
    assert normalise("1,5 men's?", ten, variant="m4c").prediction == "15 men 's"
    assert normalise("1,5 men's?", [*ten[1:], "x"], variant="official").prediction == "15 men's"


def test_digits_are_ascii_in_the_official_script_only() -> None:
    answers = ["\uff11,\uff12"] * 7 + ["other"] * 3
    assert normalise("", answers, variant="official").answers[0] == "\uff11 \uff12"
    assert normalise("", answers, variant="legacy").answers[0] == "\uff11\uff12"


def test_at_most_32_periods_are_removed() -> None:
    assert normalise("." * 40, ["a", "b"], variant="official").prediction == "." * 8


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("dont", "don't"), ("couldntve", "couldntve"), ("couldnt've", "couldn't've"), ("somebody'd", "somebodyd"),
        ("ten of None", "10 of 0"), ("an apple, a pear", "apple pear"), ("semi-truck", "semi truck"),
        ("semi- truck", "semi truck"), ("1.5", "1.5"), ("5.", "5"), (".5", ".5"), ("yall'd've", "y'all'd've"),
    ],
)  # fmt: skip
def test_words(raw: str, cleaned: str) -> None:
    assert normalise(raw, ["a", "b"], variant="official").prediction == cleaned


def test_equal_records_are_one_person_but_equal_texts_are_not() -> None:
    texts = ["cat"] * 6 + ["dog"] * 4
    without_ids: list[Answer] = [{"answer": text} for text in texts]
    for variant in ("official", "legacy"):
        assert vqa_accuracy("cat", without_ids, variant=variant) == 0.4
        assert vqa_accuracy("cat", texts, variant=variant) == 1
    for variant in ("m4c", "vizwiz"):
        assert vqa_accuracy("cat", without_ids, variant=variant) == 1


def test_records_become_equal_by_cleaning() -> None:
    # "Cat" and "cat" are one record after cleaning, so all ten are left out together.
    answers: list[Answer] = [{"answer": "Cat"}] * 5 + [{"answer": "cat"}] * 5
    assert vqa_accuracy("cat", answers, variant="official") == 0


def test_one_annotator_alone_agrees_with_nobody() -> None:
    assert vqa_accuracy("cat", ["cat"], variant="official") == 0


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match=r"no VQA variant 'vqa2021'.*official"):
        vqa_accuracy("cat", ["cat"], variant="vqa2021")
    with pytest.raises(ConfigError, match="no VQA variant"):
        vqa_metric("vqa2021")
    with pytest.raises(MetricError, match=r"exactly 10 answers.*one has 3"):
        vqa_accuracy("cat", ["cat"] * 3, variant="m4c")
    with pytest.raises(MetricError, match="has none"):
        vqa_accuracy("cat", [], variant="official")


def test_the_metric_gives_every_variant() -> None:
    answered = [asked("1", records(*["yes"] * 10), "Yes"), asked("2", records(*["cat"] * 10), "cat")]
    scores = vqa_metric("legacy").compute(answered, MetricSettings())
    assert scores.aggregate == {
        "vqa_accuracy": 1.0,
        "vqa_accuracy[official]": 0.5,
        "vqa_accuracy[legacy]": 1.0,
        "vqa_accuracy[m4c]": 1.0,
        "vqa_accuracy[vizwiz]": 1.0,
    }
    assert scores.per_sample["vqa_accuracy[official]"] == (0.0, 1.0)
    assert scores.per_sample.keys() == scores.aggregate.keys()
    assert not scores.unavailable


def test_a_variant_that_cannot_be_computed_says_why_and_takes_no_other_down() -> None:
    answered = [asked("1", ["cat"] * 10, "cat"), asked("2", ["cat"] * 9, "cat")]
    scores = vqa_metric("official").compute(answered, MetricSettings())
    assert scores.aggregate["vqa_accuracy"] == 1
    assert "vqa_accuracy[m4c]" not in scores.aggregate
    assert "exactly 10 answers" in scores.unavailable["vqa_accuracy[m4c]"]
    assert "question 2" in scores.unavailable["vqa_accuracy[m4c]"]


def test_no_answer_is_wrong_and_a_box_is_no_text() -> None:
    blank = Answered(sample=Sample(id="1", image_ids=("7",), reference={"answers": [""] * 10}), answer=None)
    assert vqa_metric("official").compute([blank], MetricSettings()).aggregate["vqa_accuracy"] == 0
    box = Answered(sample=Sample(id="2", image_ids=("7",), reference={"answers": ["cat"] * 10}), answer=(1, 2, 3, 4))
    scores = vqa_metric("official").compute([box], MetricSettings())
    assert "compares text, but the answer to question 2" in scores.unavailable["vqa_accuracy"]


def test_names_choose() -> None:
    settings = MetricSettings(names=("vqa_accuracy[m4c]",))
    scores = vqa_metric("official").compute([asked("1", ["cat"] * 10, "cat")], settings)
    assert list(scores.aggregate) == ["vqa_accuracy[m4c]"]


def test_nothing_answered_is_no_score() -> None:
    scores = vqa_metric("official").compute([], MetricSettings())
    assert not scores.aggregate
    assert "vqa_accuracy" in scores.unavailable


@given(prediction=any_text, answers=st.lists(any_text, min_size=10, max_size=10), variant=variants)
def test_no_string_crashes_it(prediction: str, answers: list[str], variant: str) -> None:
    assert 0 <= vqa_accuracy(prediction, answers, variant=variant) <= 1


@given(text=any_text)
def test_what_all_ten_said_is_right(text: str) -> None:
    assert vqa_accuracy(text, [text] * 10, variant="official") == 1
    assert vqa_accuracy(text, [text] * 10, variant="m4c") == 1


@given(words=st.lists(st.sampled_from(["cat", "dog", "red", "blue", "2", "bus"]), min_size=10, max_size=10))
def test_the_most_frequent_clean_answer_is_the_best_under_every_variant(words: list[str]) -> None:
    best = max(set(words), key=words.count)
    for variant in VARIANTS:
        accuracies = [vqa_accuracy(word, words, variant=variant) for word in words]
        assert vqa_accuracy(best, words, variant=variant) == max(accuracies)


@given(
    asked_about=st.lists(st.tuples(any_text, st.lists(any_text, min_size=10, max_size=10)), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_order_changes_nothing(asked_about: list[tuple[str, list[str]]], seed: int) -> None:
    answered = [asked(str(i), records(*answers), text) for i, (text, answers) in enumerate(asked_about)]
    shuffled = random.Random(seed).sample(answered, len(answered))
    metric = vqa_metric("official")
    one, other = metric.compute(answered, MetricSettings()), metric.compute(shuffled, MetricSettings())
    assert one.aggregate == other.aggregate
    assert one.unavailable == other.unavailable


@given(texts=st.lists(st.sampled_from(["cat", "Cat", "the cat", "dog", ""]), min_size=1, max_size=12), variant=variants)
def test_leave_one_out_equals_its_definition(texts: list[str], variant: str) -> None:
    """The quick count of agreeing others equals the official double loop."""
    answers: list[Answer] = [{"answer": text, "confidence": i % 2} for i, text in enumerate(texts)]
    if variant == "m4c" and len(texts) != 10:
        return
    cleaned = normalise("cat", answers, variant=variant)
    people = [(text, i if variant in ("m4c", "vizwiz") else i % 2) for i, text in enumerate(cleaned.answers)]
    each = [
        min(1, sum(other != person and other[0] == cleaned.prediction for other in people) / 3) for person in people
    ]
    assert vqa_accuracy("cat", answers, variant=variant) == pytest.approx(sum(each) / len(each), abs=1e-12)
