"""InstructBLIP against plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoProcessor, InstructBlipForConditionalGeneration

from evalkit.errors import ModelError
from evalkit.models.instructblip import InstructBlip
from evalkit.types import Decoding

from . import tiny

DECODINGS = {
    "greedy": (Decoding(), {"max_new_tokens": 10}),
    "okvqa": (
        Decoding(num_beams=5, length_penalty=-1.0),
        {"max_new_tokens": 10, "num_beams": 5, "length_penalty": -1.0},
    ),
    "caption": (
        Decoding(num_beams=5, max_new_tokens=20, min_new_tokens=10),
        {"max_new_tokens": 20, "min_new_tokens": 10, "num_beams": 5},
    ),
    "repetition": (Decoding(repetition_penalty=1.5), {"max_new_tokens": 10, "repetition_penalty": 1.5}),
}


@pytest.fixture(scope="module", params=["t5", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.instructblip(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("name", DECODINGS)
def test_shared_patches_equal_the_documented_call(folder: Path, name: str) -> None:
    decoding, kwargs = DECODINGS[name]
    model = InstructBlip(checkpoint=str(folder))
    model.prepare(tiny.task())
    encoded = model.encode([model.preprocess(image) for image in tiny.pictures()])
    outputs = model.generate(encoded, tiny.prompts(), decoding)
    assert len(set(outputs)) > (8 if decoding.length_penalty < 0 else 14)
    processor = AutoProcessor.from_pretrained(folder)
    reference = InstructBlipForConditionalGeneration.from_pretrained(folder)
    expected = []
    for prompt in tiny.prompts():
        inputs = processor(images=tiny.pictures()[prompt.rows[0]], text=prompt.text, return_tensors="pt")
        ids = reference.generate(**inputs, do_sample=False, **kwargs)
        start = 0 if reference.language_model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        expected.append(processor.batch_decode(ids[:, start:], skip_special_tokens=True)[0])
    assert outputs == expected


def test_the_second_tokenizer_belongs_to_the_model(folder: Path) -> None:
    files = InstructBlip(checkpoint=str(folder)).files(tiny.task())
    assert "qformer_tokenizer/tokenizer.json" in files
    assert "tokenizer.json" in files


def test_without_the_second_tokenizer_it_says_so(tmp_path: Path) -> None:
    folder = tiny.instructblip(tmp_path, "t5")
    (folder / "qformer_tokenizer").rename(folder / "elsewhere")
    with pytest.raises(ModelError, match="no tokenizer in its sub-folder qformer_tokenizer"):
        InstructBlip(checkpoint=str(folder)).prepare(tiny.task())
