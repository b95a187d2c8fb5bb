"""`fake`, `majority` and `oracle`: deterministic, and bounds of what can be reached."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from evalkit.errors import UnsupportedError
from evalkit.models.baselines import Majority, Oracle
from evalkit.models.fake import Fake
from evalkit.types import Dataset, Decoding, Prompt, Sample, Text

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
