"""BLIP against plain transformers, and its ranking against the formula of the original code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoProcessor,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
)

from evalkit.errors import ConfigError, ModelError, SampleError
from evalkit.models.blip import Blip
from evalkit.types import Decoding, Encoded, Prompt

from . import tiny

DECODINGS = {
    "greedy": (Decoding(), {"max_new_tokens": 10}),
    "caption": (
        Decoding(num_beams=3, max_new_tokens=20, min_new_tokens=5),
        {"num_beams": 3, "max_new_tokens": 20, "min_new_tokens": 5},
    ),
    "repetition": (Decoding(repetition_penalty=1.1), {"max_new_tokens": 10, "repetition_penalty": 1.1}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {head: tiny.blip(tmp_path_factory.mktemp(head), head) for head in ("vqa", "caption", "retrieve")}


def ready(folder: Path, head: str, **settings: object) -> tuple[Blip, Encoded]:
    model = Blip(checkpoint=str(folder), head=head, **settings)
    model.prepare(tiny.task("retrieve" if head == "retrieve" else "generate"))
    return model, model.encode([model.preprocess(image) for image in tiny.pictures()])


@pytest.mark.parametrize("name", DECODINGS)
@pytest.mark.parametrize("head", ["vqa", "caption"])
def test_text_equals_the_documented_call(folders: dict[str, Path], head: str, name: str) -> None:
    decoding, kwargs = DECODINGS[name]
    model, encoded = ready(folders[head], head)
    outputs = model.generate(encoded, tiny.prompts(), decoding)
    assert len(set(outputs)) >= 15
    processor = AutoProcessor.from_pretrained(folders[head])
    cls = BlipForQuestionAnswering if head == "vqa" else BlipForConditionalGeneration
    reference = cls.from_pretrained(folders[head])
    expected = []
    for prompt in tiny.prompts():
        inputs = processor(images=tiny.pictures()[prompt.rows[0]], text=prompt.text, return_tensors="pt")
        # A caption begins with its prompt, whose last token [SEP] it was not shown; an answer with a start token.
        start = 1 if head == "vqa" else inputs["input_ids"].shape[1] - 1
        ids = reference.generate(**inputs, do_sample=False, **kwargs)
        expected.append(processor.batch_decode(ids[:, start:], skip_special_tokens=True)[0])
    assert outputs == expected


def test_empty_prompt_equals_a_caption_without_one(folders: dict[str, Path]) -> None:
    model, encoded = ready(folders["caption"], "caption")
    prompts = [Prompt(sample_id=str(row), text="", rows=(row,)) for row in range(4)]
    outputs = model.generate(encoded, prompts, Decoding())
    processor = AutoProcessor.from_pretrained(folders["caption"])
    reference = BlipForConditionalGeneration.from_pretrained(folders["caption"])
    # transformers reads the start token of this case from `decoder_input_ids`
    reference.decoder_input_ids = reference.config.text_config.bos_token_id
    ids = reference.generate(**processor(images=tiny.pictures(), return_tensors="pt"), max_new_tokens=10)
    assert outputs == processor.batch_decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ranking_is_that_of_the_original(folders: dict[str, Path], smoothing: float) -> None:
    candidates = ["yes", "no", "a cat", "red", "the blue dog", "many", "cat photo", "two", "yes yes yes"]
    keep = 4
    model, encoded = ready(folders["vqa"], "vqa", label_smoothing=smoothing, encoder_token=5)
    answers = model.rank(encoded, tiny.prompts(), candidates, keep)
    assert len(set(answers)) >= 3
    reference = BlipForQuestionAnswering.from_pretrained(folders["vqa"])
    processor = AutoProcessor.from_pretrained(folders["vqa"])
    for prompt, answer in zip(tiny.prompts(), answers, strict=True):
        inputs = processor(images=tiny.pictures()[prompt.rows[0]], text=prompt.text, return_tensors="pt")
        inputs["input_ids"][:, 0] = 5
        scores = []
        for candidate in candidates:
            ids = processor.tokenizer(candidate, return_tensors="pt")["input_ids"]
            ids[:, 0] = 4
            with torch.no_grad():
                patches = reference.vision_model(inputs["pixel_values"]).last_hidden_state
                states = reference.text_encoder(
                    input_ids=inputs["input_ids"], encoder_hidden_states=patches
                ).last_hidden_state
                logits = reference.text_decoder(input_ids=ids, encoder_hidden_states=states).logits
            loss = torch.nn.functional.cross_entropy(
                logits[0, :-1], ids[0, 1:], reduction="sum", label_smoothing=smoothing
            )
            first = logits[0, 0].softmax(-1)[ids[0, 1]].item()
            scores.append((first, loss.item(), candidate))
        kept = sorted(scores, key=lambda score: -score[0])[:keep]
        assert answer == min(kept, key=lambda score: score[1])[2]


def test_settings_of_the_original_change_answers(folders: dict[str, Path]) -> None:
    model, encoded = ready(folders["vqa"], "vqa")
    other, _ = ready(folders["vqa"], "vqa", encoder_token=5)
    assert model.generate(encoded, tiny.prompts(), Decoding()) != other.generate(encoded, tiny.prompts(), Decoding())
    assert model.identity(tiny.task()) != other.identity(tiny.task())


def test_matching_equals_the_documented_call(folders: dict[str, Path]) -> None:
    model, encoded = ready(folders["retrieve"], "retrieve")
    processor = AutoProcessor.from_pretrained(folders["retrieve"])
    reference = BlipForImageTextRetrieval.from_pretrained(folders["retrieve"])
    texts = ["a cat", "red photo of many, many dogs", "no", "the answer is " * 30]
    similarity_IT = np.einsum("iqd,td->it", model.itc_images(encoded), model.itc_texts(texts))
    for row, image in enumerate(tiny.pictures()):
        matches = model.itm(encoded.select([row] * len(texts)), texts)
        for column, text in enumerate(texts):
            inputs = processor(images=image, text=text, truncation=True, max_length=35, return_tensors="pt")
            with torch.no_grad():
                itc = reference(**inputs, use_itm_head=False).itm_score.item()
                itm = reference(**inputs, use_itm_head=True).itm_score[0, 1].item()
            assert similarity_IT[row, column] == pytest.approx(itc, abs=1e-5)
            assert matches[column] == pytest.approx(itm, abs=1e-4)


def test_heads_are_told_apart(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"model\.head"):
        Blip(checkpoint="x", head="answer")
    with pytest.raises(ModelError, match="BlipForQuestionAnswering"):
        Blip(checkpoint=str(folders["vqa"]), head="caption").prepare(tiny.task())
    captioner = Blip(checkpoint=str(folders["caption"]), head="caption")
    assert "rank" in str(captioner.refuses(tiny.task(decoding=Decoding(rank_candidates=128))))
    assert captioner.refuses(tiny.task("retrieve")) is not None


def test_too_long_a_question_is_refused(folders: dict[str, Path]) -> None:
    model, encoded = ready(folders["vqa"], "vqa")
    with pytest.raises(SampleError, match="512 positions"):
        model.generate(encoded, [Prompt(sample_id="1", text="dog " * 600, rows=(0,))], Decoding())
