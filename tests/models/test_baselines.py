"""`fake`, `majority` and `oracle`: deterministic, and bounds of what can be reached."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from evalkit.choice import Chooser
from evalkit.errors import ConfigError, UnsupportedError
from evalkit.models.baselines import Majority, Oracle
from evalkit.models.fake import Fake
from evalkit.types import Dataset, Decoding, Prompt, Sample, Task, Text

from . import tiny


class Store:
    """Images by number."""

    def open(self, image_id: str) -> Image.Image:
        return tiny.pictures()[int(image_id)]

    def missing(self, image_ids: Sequence[str]) -> list[str]:
        return []


def dataset(references: Sequence[str | None], texts: Sequence[Text] = ()) -> Dataset:
    samples = tuple(
        Sample(id=f"s{place}", image_ids=(str(place % 4),), reference=reference)
        for place, reference in enumerate(references)
    )
    return Dataset(samples=samples, images=Store(), texts=tuple(texts))


def ask(model: Fake | Majority | Oracle, prompts: list[Prompt], decoding: Decoding = Decoding()) -> list[str]:  # noqa: B008
    encoded = model.encode([model.preprocess(image) for image in tiny.pictures()])
    return model.generate(encoded, prompts, decoding)


def test_fake_depends_on_prompt_pixels_and_decoding_only() -> None:
    prompts = tiny.prompts()
    outputs = ask(Fake(), prompts)
    renamed = [dataclasses.replace(prompt, sample_id="x") for prompt in prompts]
    assert ask(Fake(), renamed[::-1])[::-1] == outputs
    assert len(set(outputs)) > len(outputs) / 2
    for other in (
        Decoding(num_beams=5),
        Decoding(length_penalty=-1.0),
        Decoding(repetition_penalty=1.1),
        Decoding(temperature=0.5),
        Decoding(min_new_tokens=9),
        Decoding(max_new_tokens=1),
    ):
        assert ask(Fake(), prompts, other) != outputs
    assert ask(Fake(), prompts, Decoding(top_p=0.5, top_k=3, seed=9)) == outputs
    assert ask(Fake(seed=1), prompts) != outputs


def test_fake_keeps_lengths_and_stop_strings() -> None:
    prompts = tiny.prompts()
    for output in ask(Fake(), prompts, Decoding(min_new_tokens=5, max_new_tokens=7)):
        assert 5 <= len(output.split()) <= 7
    for output in ask(Fake(), prompts, Decoding(min_new_tokens=5, stop=("a",))):
        assert "a" not in output


def test_fake_gives_boxes_when_it_grounds() -> None:
    model = Fake()
    model.prepare(tiny.task("ground"))
    for output in ask(model, tiny.prompts()):
        x1, y1, x2, y2 = (
            int(number) for number in output.replace("</box>", "").replace("(", "").replace(")", "").split(",")
        )
        assert 0 <= x1 <= x2 <= 999
        assert 0 <= y1 <= y2 <= 999


def test_fake_fails_where_it_is_told_to() -> None:
    prompts = tiny.prompts()[:5]
    with pytest.raises(RuntimeError, match="0-1"):
        ask(Fake(fail_on=["0-1"]), prompts)
    with pytest.raises(RuntimeError, match="colour"):
        ask(Fake(fail_on=["colour"]), prompts)
    assert ask(Fake(fail_on=["zebra"]), prompts)


def test_fake_matches_and_ranks() -> None:
    model = Fake()
    encoded = model.encode([model.preprocess(image) for image in tiny.pictures()])
    images, texts = model.itc_images(encoded), model.itc_texts(["a", "b"])
    assert images.shape == (4, 1, 32)
    assert texts.shape == (2, 32)
    np.testing.assert_allclose(np.linalg.norm(images, axis=-1), 1, rtol=1e-5)
    assert len(set(model.itm(encoded, ["a"] * 4))) == 4
    assert set(model.rank(encoded, tiny.prompts(), ["cat", "dog"], 2)) == {"cat", "dog"}


def test_fake_needs_no_torch() -> None:
    code = "import sys, evalkit.models.fake, evalkit.models.baselines; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_oracle_says_what_is_right_and_majority_what_is_frequent() -> None:
    task = dataclasses.replace(tiny.task(), perfect=lambda sample: f"it is {sample.reference}")
    data = dataset(["cat", "dog", "dog", "bird"])
    prompts = [Prompt(sample_id=sample.id, text="?", rows=(0,)) for sample in data.samples]
    for model, expected in (
        (Oracle(), ["it is cat", "it is dog", "it is dog", "it is bird"]),
        (Majority(), ["it is dog"] * 4),
    ):
        model.study(task, data)
        model.prepare(task)
        assert ask(model, prompts) == expected


def test_majority_takes_the_tasks_own_choice() -> None:
    task = dataclasses.replace(tiny.task(), majority=lambda samples: f"of {len(samples)}")
    model = Majority()
    model.study(task, dataset(["cat", None]))
    model.prepare(task)
    assert ask(model, tiny.prompts()[:1]) == ["of 1"]


def test_several_tasks_are_kept_apart() -> None:
    first = dataclasses.replace(tiny.task(), name="a/x", perfect=lambda sample: "first")
    second = dataclasses.replace(tiny.task(), name="b/x", perfect=lambda sample: "second")
    prompts = [Prompt(sample_id="s0", text="?", rows=(0,))]
    for model in (Oracle(), Majority()):
        model.study(first, dataset(["1"]))
        model.study(second, dataset(["2"]))
        model.prepare(first)
        assert ask(model, prompts) == ["first"]
        model.prepare(second)
        assert ask(model, prompts) == ["second"]


def test_blind_splits_are_refused() -> None:
    task = dataclasses.replace(tiny.task(), perfect=lambda sample: "never")
    for model in (Oracle(), Majority()):
        with pytest.raises(UnsupportedError, match="blind"):
            model.study(task, dataset([None, None]))
        assert "perfect" in str(model.refuses(tiny.task()))
        assert "rank" in str(model.refuses(dataclasses.replace(task, decoding=Decoding(rank_candidates=3))))


def test_oracle_knows_pairs_and_majority_does_not() -> None:
    texts = [Text(id=str(place), text=f"caption {place}", image_ids=(f"s{place // 2}",)) for place in range(8)]
    texts.append(Text(id="8", text="caption 0", image_ids=("s3",)))
    task = tiny.task("retrieve")
    data = dataset(["0", "1", "2", "3"], texts)
    captions = [text.text for text in texts]
    captions[1] = "Caption,  1."  # a task may clean captions before they are embedded
    oracle = Oracle()
    oracle.study(task, data)
    oracle.prepare(task)
    encoded = oracle.encode([oracle.preprocess(image) for image in tiny.pictures()])
    similarity = np.einsum("iqd,td->it", oracle.itc_images(encoded), oracle.itc_texts(captions))
    for place in range(1, 8):
        assert similarity[:, place].argmax() == place // 2
        assert similarity[place // 2, place] == pytest.approx(1, abs=1e-5)
    assert set(np.argsort(-similarity[:, 0])[:2]) == {0, 3}
    majority = Majority()
    majority.study(task, data)
    majority.prepare(task)
    encoded = majority.encode([majority.preprocess(image) for image in tiny.pictures()])
    assert np.ptp(np.einsum("iqd,td->it", majority.itc_images(encoded), majority.itc_texts(captions))) == 0


LETTERS = ("A", "B", "C", "D")


def choosing(template: str = "{question}") -> Task:
    return dataclasses.replace(
        tiny.task("choose"), prompts={"completion": template}, perfect=lambda sample: str(sample.reference)
    )


def asked(*samples: tuple[str, Sequence[str], str]) -> Dataset:
    """Return samples of (question, options, right option), a picture each, in turns."""
    made = [
        Sample(
            id=f"s{place}",
            image_ids=(str(place % 4),),
            fields={"question": question},
            options=tuple(options),
            reference=right,
        )
        for place, (question, options, right) in enumerate(samples)
    ]
    return Dataset(samples=tuple(made), images=Store())


def choose(model: Fake | Majority | Oracle, task: Task, data: Dataset) -> list[str]:
    """Return what the model chooses, as a run asks it."""
    assert model.refuses(task) is None
    if not isinstance(model, Fake):
        model.study(task, data)
    model.prepare(task)
    encoded = model.encode([model.preprocess(image) for image in tiny.pictures()])
    prompts = [
        Prompt(
            sample_id=sample.id,
            text=task.template.replace("{question}", str(sample.fields["question"])),
            rows=(int(sample.image_ids[0]),),
        )
        for sample in data.samples
    ]
    return Chooser(model).choose(encoded, prompts, [sample.options for sample in data.samples], match=task.matches)


@pytest.mark.parametrize("template", ["{question}", "{question} {option}.\nthis is a {option}", "a {option}"])
def test_bounds_of_a_choice_among_the_same_options(template: str) -> None:
    right = ["dog", "cat", "bird", "cat", "dog", "cat", "bird", "cat"]  # two questions on each picture
    rows = [(f"is it {place // 4}?", ["bird", "cat", "dog"], answer) for place, answer in enumerate(right)]
    data = asked(*(rows[:4] if template == "a {option}" else rows))
    expected = [sample.reference for sample in data.samples]
    assert choose(Oracle(), choosing(template), data) == expected
    assert choose(Majority(), choosing(template), data) == ["cat"] * len(expected)


@pytest.mark.parametrize("template", ["{question}", "{question} {option}"])
def test_majority_takes_a_place_where_options_are_each_samples_own(template: str) -> None:
    """The right texts occur once each, so that a count of texts would know every answer."""
    rows = [(f"question {number}", [f"{letter}{number}" for letter in LETTERS], "") for number in range(8)]
    rows = [
        (question, options, options[(2, 2, 1, 2, 0, 3, 2, 1)[row]]) for row, (question, options, _) in enumerate(rows)
    ]
    data = asked(*rows)
    taken = choose(Majority(), choosing(template), data)
    # "A4" sorts first of the outputs that occur once; elsewhere the third option is right most often.
    assert taken == ["C0", "C1", "C2", "C3", "A4", "C5", "C6", "C7"]
    blind = dataclasses.replace(data.samples[0], id="blind", options=(), reference=None)
    Majority().study(choosing(template), dataclasses.replace(data, samples=(*data.samples, blind)))
    assert choose(Oracle(), choosing(template), data) == [right for _, _, right in rows]


def test_majority_of_mixed_questions() -> None:
    data = asked(
        ("a", ("yes", "no"), "no"),
        ("b", ("no", "yes"), "no"),
        ("c", ("red", "blue", "green"), "green"),
        ("d", ("yes", "no"), "yes"),
        ("e", ("one", "two"), "one"),
        ("f", ("1", "2", "3"), "3"),
    )
    # The third place is the most frequent among the others; where there is none, the first is taken.
    assert choose(Majority(), choosing(), data) == ["no", "no", "green", "no", "one", "3"]


def test_a_perfect_output_that_is_no_option_is_the_tasks_mistake() -> None:
    data = asked(("a", ("yes", "no"), "A"))
    for model in (Oracle(), Majority()):
        with pytest.raises(ConfigError, match="perfect output 'A' of sample s0 is none of its 2 options"):
            model.study(choosing(), data)


def test_texts_that_a_filter_rewords_are_refused() -> None:
    task = dataclasses.replace(choosing("{question} {option}"), question_filter="blip")
    for model in (Oracle(), Majority()):
        assert "question_filter=none" in str(model.refuses(task))
        assert model.refuses(dataclasses.replace(choosing(), question_filter="blip")) is None


def test_decoding_has_nothing_to_act_on_in_a_choice() -> None:
    task = dataclasses.replace(choosing(), decoding=Decoding(num_beams=5))
    for model in (Fake(), Oracle(), Majority()):
        assert "decoding.num_beams=5 has nothing to act on" in str(model.refuses(task))


def test_fake_chooses_by_prompt_pixels_and_option() -> None:
    rows = [(f"question {number}", LETTERS, "A") for number in range(40)]
    chosen = choose(Fake(), choosing(), asked(*rows))
    assert set(chosen) == set(LETTERS)
    assert choose(Fake(), choosing(), asked(*rows)) == chosen
    assert choose(Fake(), choosing(), asked(*((question, LETTERS[::-1], "A") for question, _, _ in rows))) == chosen
    assert choose(Fake(seed=1), choosing(), asked(*rows)) != chosen
    assert set(choose(Fake(), choosing("{question} {option}"), asked(*rows))) > {"A"}
    with pytest.raises(RuntimeError, match="question 7"):
        choose(Fake(fail_on=["question 7"]), choosing(), asked(*rows))
