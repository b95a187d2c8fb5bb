"""Chat models against plain transformers: the model's own `generate`, given pixels with every question."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from evalkit.errors import ImageError, ModelError, SampleError
from evalkit.models.chat import Chat
from evalkit.types import Decoding, Encoded, Prompt

from . import tiny

DECODINGS = {
    "greedy": (Decoding(), {"max_new_tokens": 10}),
    "beams": (Decoding(num_beams=5, length_penalty=0.5), {"max_new_tokens": 10, "num_beams": 5, "length_penalty": 0.5}),
    "repetition": (Decoding(repetition_penalty=1.5), {"max_new_tokens": 10, "repetition_penalty": 1.5}),
}


@pytest.fixture(scope="module", params=tiny.CHATS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.chat(tmp_path_factory.mktemp(request.param), request.param)


def ready(folder: Path, **settings: Any) -> tuple[Chat, Encoded]:
    model = Chat(checkpoint=str(folder), **settings)
    model.prepare(tiny.task())
    return model, model.encode([model.preprocess(image) for image in tiny.pictures()])


def documented_inputs(folder: Path, prompt: Prompt) -> dict[str, Any]:
    """What the documentation feeds: the processor's, or where it needs torchvision, its parts by hand."""
    image = tiny.pictures()[prompt.rows[0]]
    if "llava" in folder.name:
        turns = [
            {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt.text}]}
        ]
        processor = AutoProcessor.from_pretrained(folder)
        return dict(
            processor.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        )
    seen = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=[image], return_tensors="pt")
    places = "<|image_pad|>" * (int(seen["image_grid_thw"].prod()) // 4)
    text = f"<|im_start|>user\n<|vision_start|>{places}<|vision_end|>{prompt.text}<|im_end|>\n<|im_start|>assistant\n"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == pad).long(),
        **seen,
    }


@pytest.mark.parametrize("name", DECODINGS)
def test_shared_features_equal_the_documented_call(folder: Path, name: str) -> None:
    decoding, kwargs = DECODINGS[name]
    model, encoded = ready(folder)
    prompts = tiny.prompts()
    outputs = model.generate(encoded, prompts, decoding)
    assert len(set(outputs)) >= (15 if decoding.num_beams == 1 else 10)
    reference = AutoModelForImageTextToText.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = []
    for prompt in prompts:
        inputs = documented_inputs(folder, prompt)
        ids = reference.generate(**inputs, do_sample=False, **kwargs)
        expected.append(tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])
    assert outputs == expected


def test_without_sharing_the_answers_are_the_same(folder: Path) -> None:
    model, encoded = ready(folder)
    other, raw = ready(folder, share_images=False)
    for decoding in (Decoding(), Decoding(num_beams=3)):
        assert model.generate(encoded, tiny.prompts(), decoding) == other.generate(raw, tiny.prompts(), decoding)


def test_several_images_in_one_prompt(folder: Path) -> None:
    model, encoded = ready(folder)
    other, raw = ready(folder, share_images=False)
    prompts = [
        Prompt(sample_id="two", text="what is the colour", rows=(0, 2)),
        Prompt(sample_id="none", text="what is the colour", rows=()),
        Prompt(sample_id="turned", text="what is the colour", rows=(2, 0)),
    ]
    together = model.generate(encoded, prompts, Decoding())
    assert together == [model.generate(encoded, [prompt], Decoding())[0] for prompt in prompts]
    assert together == other.generate(raw, prompts, Decoding())
    assert len(set(together)) == 3


def test_a_system_turn_is_said(folder: Path) -> None:
    model, encoded = ready(folder)
    other, _ = ready(folder, system="how many")
    assert model.generate(encoded, tiny.prompts(), Decoding()) != other.generate(encoded, tiny.prompts(), Decoding())
    assert model.identity(tiny.task()) != other.identity(tiny.task())


def test_image_token_in_a_prompt_is_refused(folder: Path) -> None:
    model, encoded = ready(folder)
    token = "<image>" if "llava" in folder.name else "<|image_pad|>"
    with pytest.raises(SampleError, match="sample 3"):
        model.generate(encoded, [Prompt(sample_id="3", text=f"what is {token}", rows=(0,))], Decoding())


def test_padding_to_a_square_changes_what_is_seen(tmp_path: Path) -> None:
    folder = tiny.chat(tmp_path, "llava")
    model, encoded = ready(folder)
    other, squares = ready(folder, pad_to_square=True)
    plain = model.generate(encoded, tiny.prompts(), Decoding())
    assert other.generate(squares, tiny.prompts(), Decoding()) != plain


def test_image_options_reach_the_processor(tmp_path: Path) -> None:
    folder = tiny.chat(tmp_path, "qwen2_vl")
    model, _ = ready(folder)
    other, _ = ready(folder, image_options={"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28}})
    image = tiny.pictures()[2]
    assert len(other.preprocess(image).span) < len(model.preprocess(image).span)
    with pytest.raises(ImageError, match="1x5000"):
        model.preprocess(image.resize((1, 5000)))


def test_a_model_that_cannot_share_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny.chat(tmp_path, "llava")
    model, _ = ready(folder)
    expected = model.generate(_, tiny.prompts(), Decoding())

    class Older(type(model._model)):  # type: ignore[misc]
        def forward(self, input_ids=None, attention_mask=None, pixel_values=None, **kwargs):  # type: ignore[no-untyped-def]
            return super().forward(
                input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values, **kwargs
            )

    other = Chat(checkpoint=str(folder))
    load = other._loading.load

    def older(checkpoint: Any, name: str) -> Any:
        loaded = load(checkpoint, name)
        loaded.__class__ = Older
        return loaded

    object.__setattr__(other._loading, "load", older)
    with caplog.at_level(logging.WARNING):
        other.prepare(tiny.task())
    assert "again for each question" in caplog.text
    raw = other.encode([other.preprocess(image) for image in tiny.pictures()])
    assert other.generate(raw, tiny.prompts(), Decoding()) == expected
    options = [["yes", "the cat"]] * len(tiny.prompts())
    judged = other.loglikelihood(raw, tiny.prompts(), options)
    for one, another in zip(judged, model.loglikelihood(_, tiny.prompts(), options), strict=True):
        assert one == pytest.approx(another, abs=1e-4)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = tiny.chat(tmp_path, "llava")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        Chat(checkpoint=str(folder)).prepare(tiny.task())
    assert "image_options" in str(Chat(checkpoint="x/y").refuses(tiny.task(image_size=224)))
    assert "box syntax" in str(Chat(checkpoint="x/y").refuses(tiny.task("ground")))
    assert Chat(checkpoint="x/y", box_extract="box_1000").refuses(tiny.task("ground")) is None
