"""CLIP and SigLIP against plain transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from evalkit.errors import ModelError
from evalkit.models.clip import Clip

from . import tiny

TEXTS = ["a cat", "two red dogs in a photo", "no", "what is the answer " * 40]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.dual(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("prefix", ["", "a photo of "])
def test_similarity_equals_the_documented_call(folder: Path, prefix: str) -> None:
    model = Clip(checkpoint=str(folder), text_prefix=prefix)
    model.prepare(tiny.task("retrieve"))
    encoded = model.encode([model.preprocess(image) for image in tiny.pictures()])
    similarity_IT = np.einsum("iqd,td->it", model.itc_images(encoded), model.itc_texts(TEXTS))
    processor, reference = AutoProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder)
    inputs = processor(
        images=tiny.pictures(),
        text=[prefix + text for text in TEXTS],
        padding="max_length" if "siglip" in folder.name else True,
        truncation=True,
        return_tensors="pt",
    )
    if "siglip" in folder.name:
        inputs.pop("attention_mask", None)  # the real tokenizer of SigLIP gives none
    with torch.no_grad():
        outputs = reference(**inputs)
    expected_IT = (outputs.image_embeds @ outputs.text_embeds.T).numpy()
    np.testing.assert_allclose(similarity_IT, expected_IT, atol=1e-5)
    assert len(np.unique(expected_IT.round(4))) == expected_IT.size


def test_refuses_another_size_and_text(folder: Path) -> None:
    model = Clip(checkpoint=str(folder))
    assert "image_size=364" in str(model.refuses(tiny.task("retrieve", image_size=364)))
    assert "does not generate" in str(model.refuses(tiny.task()))
    assert model.refuses(tiny.task("retrieve")) is None


def test_another_family_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'blip-2'"):
        Clip(checkpoint=str(tiny.blip2_text(tmp_path))).prepare(tiny.task("retrieve"))
