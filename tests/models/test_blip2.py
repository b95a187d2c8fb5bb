"""BLIP-2 against plain transformers, on tiny checkpoints of its true architecture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval

from evalkit.errors import ConfigError, ModelError, SampleError
from evalkit.models.blip2 import Blip2
from evalkit.types import Decoding, Prompt

from . import tiny


@pytest.fixture(scope="module", params=["opt", "t5"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.blip2_text(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def matching_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.blip2_matching(tmp_path_factory.mktemp("matching"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Blip2:
    model = Blip2(checkpoint=str(folder))
    model.prepare(tiny.task())
    return model


@pytest.fixture(scope="module")
def matcher(matching_folder: Path) -> Blip2:
    model = Blip2(checkpoint=str(matching_folder), generate=None, retrieve=".")
    model.prepare(tiny.task("retrieve"))
    return model


def answers(model: Blip2, prompts: list[Prompt], decoding: Decoding) -> list[str]:
    encoded = model.encode([model.preprocess(image) for image in tiny.pictures()])
    return model.generate(encoded, prompts, decoding)


def documented(folder: Path, prompts: list[Prompt], image_size: int | None = None, **kwargs: object) -> list[str]:
    """The example of the transformers documentation, one prompt at a time, with all of `generate`'s arguments."""
    processor = AutoProcessor.from_pretrained(folder)
    reference = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    size = {} if image_size is None else {"size": {"height": image_size, "width": image_size}}
    images = tiny.pictures()
    outputs = []
    for prompt in prompts:
        inputs = processor(images=images[prompt.rows[0]], text=prompt.text, return_tensors="pt", **size)
        ids = reference.generate(**inputs, interpolate_pos_encoding=image_size is not None, **kwargs)
        if not reference.language_model.config.is_encoder_decoder:
            ids = ids[:, inputs["input_ids"].shape[1] :]
        outputs.append(processor.batch_decode(ids, skip_special_tokens=True)[0])
    return outputs


DECODINGS = {
    "greedy": (Decoding(), {"max_new_tokens": 10}),
    "vqa": (
        Decoding(num_beams=5, length_penalty=-1.0, min_new_tokens=1),
        {"max_new_tokens": 10, "min_new_tokens": 1, "num_beams": 5, "length_penalty": -1.0},
    ),
    "caption": (
        Decoding(num_beams=5, max_new_tokens=30, min_new_tokens=8),
        {"max_new_tokens": 30, "min_new_tokens": 8, "num_beams": 5},
    ),
    "repetition": (Decoding(repetition_penalty=1.5), {"max_new_tokens": 10, "repetition_penalty": 1.5}),
}


@pytest.mark.parametrize("name", DECODINGS)
def test_shared_features_equal_the_documented_call(folder: Path, model: Blip2, name: str) -> None:
    decoding, kwargs = DECODINGS[name]
    prompts = tiny.prompts()
    outputs = answers(model, prompts, decoding)
    if decoding.length_penalty > 0:  # below 0 the shortest wins, and many short answers are the same
        tiny.assert_distinct(outputs)
    assert len(set(outputs)) > 8
    assert outputs == documented(folder, prompts, do_sample=False, **kwargs)


def test_another_image_size_interpolates_positions(folder: Path) -> None:
    larger = Blip2(checkpoint=str(folder))
    larger.prepare(tiny.task(image_size=42))
    prompts = tiny.prompts()
    outputs = answers(larger, prompts, Decoding())
    assert outputs == documented(folder, prompts, image_size=42, max_new_tokens=10)
    assert outputs != documented(folder, prompts, max_new_tokens=10)


def test_sampling_belongs_to_the_sample(model: Blip2) -> None:
    prompts = tiny.prompts()
    decoding = Decoding(temperature=1.0, top_p=0.95, top_k=50)
    together = answers(model, prompts, decoding)
    alone = [answers(model, [prompt], decoding)[0] for prompt in prompts]
    assert together == alone
    assert together != answers(model, prompts, dataclasses.replace(decoding, seed=1))
    assert together != answers(model, prompts, Decoding())


def test_sampling_follows_the_softmax() -> None:
    from evalkit.models.generation import _GumbelNoise

    logits = torch.log(torch.tensor([[0.6, 0.3, 0.1]]))
    draws = [int(_GumbelNoise([str(number)], 0)(torch.zeros(1, 1), logits).argmax()) for number in range(3000)]
    shares = np.bincount(draws, minlength=3) / 3000
    assert np.abs(shares - [0.6, 0.3, 0.1]).max() < 0.03


def test_stop_strings_end_the_text(model: Blip2) -> None:
    prompts = tiny.prompts()
    for decoding in (Decoding(), Decoding(num_beams=3)):
        plain = answers(model, prompts, decoding)
        stop = plain[0][2:4]
        stopped = answers(model, prompts, dataclasses.replace(decoding, stop=(stop,)))
        assert stopped == [text.partition(stop)[0] for text in plain]
        assert stopped != plain


def test_checkpoint_settings_do_not_reach_decoding(folder: Path, tmp_path: Path) -> None:
    twin = tiny.blip2_text(tmp_path, "opt" if "opt" in folder.name else "t5")
    changed = Blip2ForConditionalGeneration.from_pretrained(twin)
    for part in (changed, changed.language_model):
        part.generation_config.update(do_sample=True, temperature=3.0, repetition_penalty=9.0, max_length=3)
    changed.save_pretrained(twin)
    assert (twin / "generation_config.json").is_file()
    model = Blip2(checkpoint=str(twin))
    model.prepare(tiny.task())
    prompts = tiny.prompts()
    assert answers(model, prompts, Decoding()) == documented(folder, prompts, max_new_tokens=10)


def test_image_word_in_a_prompt_is_only_a_word(model: Blip2) -> None:
    prompts = [Prompt(sample_id="a", text="what is <image> in the photo", rows=(1,))]
    assert len(answers(model, prompts, Decoding())) == 1


def test_refuses_what_it_cannot_do(model: Blip2, folder: Path) -> None:
    assert "itc" in str(model.refuses(tiny.task("retrieve")))
    assert "box syntax" in str(model.refuses(tiny.task("ground")))
    assert "rank" in str(model.refuses(tiny.task(decoding=Decoding(rank_candidates=128))))
    assert "num_beams=1" in str(model.refuses(tiny.task(decoding=Decoding(temperature=0.5, num_beams=2))))
    assert model.refuses(tiny.task(decoding=Decoding(temperature=0.5))) is None
    assert Blip2(checkpoint=str(folder), box_extract="box_999").refuses(tiny.task("ground")) is None
    two_images = [Prompt(sample_id="7", text="which", rows=(0, 1))]
    with pytest.raises(SampleError, match="sample 7 refers to 2 images"):
        answers(model, two_images, Decoding())


def test_too_long_a_prompt_is_an_error_not_a_cut(tmp_path: Path) -> None:
    model = Blip2(checkpoint=str(tiny.blip2_text(tmp_path)))
    model.prepare(tiny.task())
    long = [Prompt(sample_id="9", text="dog " * 2100, rows=(0,))]
    with pytest.raises(SampleError, match=r"sample 9 has \d{4} tokens"):
        answers(model, long, Decoding())


def test_matching_equals_the_documented_call(matching_folder: Path, matcher: Blip2) -> None:
    images = tiny.pictures()
    texts = ["A photo of a cat.", "two dogs", "Red; and (blue) colour is the answer " * 9, "no"]
    processor = AutoProcessor.from_pretrained(matching_folder)
    reference = Blip2ForImageTextRetrieval.from_pretrained(matching_folder, dtype=torch.float32)
    encoded = matcher.encode([matcher.preprocess(image) for image in images])
    similarity_IT = (matcher.itc_images(encoded) @ matcher.itc_texts(texts).T).max(axis=1)
    matches_IT = np.array([matcher.itm(encoded.select([row] * len(texts)), texts) for row in range(len(images))])
    for row, image in enumerate(images):
        for column, text in enumerate(texts):
            # The processor takes the query tokens off max_length and puts them back in front.
            inputs = processor(images=image, text=text, truncation=True, max_length=35 + 4, return_tensors="pt")
            mask = inputs["attention_mask"]
            with torch.no_grad():
                itc = reference(**inputs, use_image_text_matching_head=False).logits_per_image.item()
                itm = reference(**inputs, use_image_text_matching_head=True).logits_per_image[0, 1].item()
            assert mask.all()
            assert similarity_IT[row, column] == pytest.approx(itc, abs=1e-5)
            assert matches_IT[row, column] == pytest.approx(itm, abs=1e-4)
    assert len({round(float(value), 4) for value in similarity_IT.ravel()}) >= 15
    assert len({round(float(value), 4) for value in matches_IT.ravel()}) >= 15


def test_matching_does_not_depend_on_the_batch(matching_folder: Path, matcher: Blip2) -> None:
    one = Blip2(checkpoint=str(matching_folder), generate=None, retrieve=".", pair_batch=1)
    one.prepare(tiny.task("retrieve"))
    texts = ["a", "the colour of this photo is red", "dog", "two"]
    encoded = matcher.encode([matcher.preprocess(image) for image in tiny.pictures()])
    np.testing.assert_allclose(matcher.itm(encoded, texts), one.itm(encoded, texts), atol=1e-4)
    np.testing.assert_allclose(matcher.itc_texts(texts), one.itc_texts(texts), atol=1e-5)


def test_a_folder_may_hold_both_halves(tmp_path: Path) -> None:
    tiny.blip2_text(tmp_path / "generate")
    tiny.blip2_matching(tmp_path / "retrieve")
    model = Blip2(checkpoint=str(tmp_path), generate="generate", retrieve="retrieve", box_extract="box_999")
    assert model.capabilities == {"generate", "loglikelihood", "ground", "itc", "itm"}
    assert model.files(tiny.task())["model.safetensors"].parent.name == "generate"
    assert model.files(tiny.task("retrieve"))["model.safetensors"].parent.name == "retrieve"
    assert {"config.json", "tokenizer.json", "processor_config.json"} <= set(model.files(tiny.task()))
    for kind in ("generate", "retrieve", "generate"):
        model.prepare(tiny.task(kind))
        model.encode([model.preprocess(image) for image in tiny.pictures()])


def test_wrong_half_is_named(folder: Path, matching_folder: Path) -> None:
    model = Blip2(checkpoint=str(matching_folder))
    with pytest.raises(ModelError, match="holds Blip2ForImageTextRetrieval"):
        model.prepare(tiny.task())
    with pytest.raises(ModelError, match=r"model\.generate=\."):
        Blip2(checkpoint=str(folder), generate="generate").files(tiny.task())
    with pytest.raises(ConfigError, match="both null"):
        Blip2(checkpoint=str(folder), generate=None)
