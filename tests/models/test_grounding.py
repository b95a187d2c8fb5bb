"""Grounding by chat models: what they write is found again as a box of the original image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from evalkit.__main__ import main
from evalkit.assemble import build_model
from evalkit.errors import ConfigError, ModelError
from evalkit.extract import extract
from evalkit.models.chat import Chat
from evalkit.models.pixels import padded
from evalkit.types import Decoding, Prompt, Sample

from . import tiny

LIMITS = {"size": {"shortest_edge": 28 * 28, "longest_edge": 70 * 70}}
BOX_MARKS = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")


def sample_of(width: int, height: int) -> Sample:
    return Sample(id="1", image_ids=("7",), fields={"width": width, "height": height})


def saying(model: Chat, text: str) -> str:
    """Let the model "generate" this text, through everything the adapter does around it."""
    ids = model._processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    model._model.generate = lambda input_ids, **rest: torch.cat([input_ids, ids], dim=1)
    encoded = model.encode([model.preprocess(tiny.pictures()[0])])
    [reply] = model.generate(encoded, [Prompt(sample_id="1", text="where is the cat", rows=(0,))], Decoding())
    return reply


def ready(folder: Path, **options: Any) -> Chat:
    model = Chat(checkpoint=str(folder), **options)
    model.prepare(tiny.task("ground"))
    return model


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.chat(tmp_path_factory.mktemp("qwen"), "qwen2_5_vl")


@pytest.mark.parametrize(("width", "height"), [(64, 64), (70, 14), (33, 120), (500, 260), (7, 9), (1000, 8)])
def test_pixels_of_the_resized_image_become_those_of_the_original(qwen: Path, width: int, height: int) -> None:
    """The resized size is the processor's: its grid of patches times their size."""
    model = ready(qwen, box_extract="box_resized:14", image_options=LIMITS)
    assert model.box_extract == "box_resized:14:784:4900"
    [(_, rows, columns)] = model.preprocess(Image.new("RGB", (width, height))).tensors["image_grid_thw"].tolist()
    seen_width, seen_height = columns * 7, rows * 7
    box = (0.25 * width, 0.5 * height, 0.75 * width, float(height))
    written = [0.25 * seen_width, 0.5 * seen_height, 0.75 * seen_width, seen_height]
    reply = f"```json\n{json.dumps([{'bbox_2d': written, 'label': 'the red cat'}])}\n```"
    assert extract(model.box_extract, reply, sample_of(width, height)) == pytest.approx(box)
    assert extract(model.box_extract, saying(model, reply), sample_of(width, height)) == pytest.approx(box)
    wrong = extract("box_pixels", reply, sample_of(width, height))
    assert (wrong == pytest.approx(box)) == ((seen_width, seen_height) == (width, height))


@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.sampled_from([(14, 784, 4900), (28, 3136, 12845056), (28, 200704, 401408), (32, 4096, 16384)]),
)
@settings(max_examples=40, deadline=None)
def test_the_resized_size_is_the_image_processors(width: int, height: int, limits: tuple[int, int, int]) -> None:
    if max(width, height) > 200 * min(width, height):
        return  # refused by the processor
    factor, least, most = limits
    processor = Qwen2VLImageProcessorPil(patch_size=factor // 2, merge_size=2, min_pixels=least, max_pixels=most)
    seen = processor(images=[Image.new("RGB", (width, height))], return_tensors="pt", input_data_format="channels_last")
    [(_, rows, columns)] = seen["image_grid_thw"].tolist()
    corner = f"[0, 0, {columns * factor // 2}, {rows * factor // 2}]"
    found = extract(f"box_resized:{factor}:{least}:{most}", corner, sample_of(width, height))
    assert found == pytest.approx((0, 0, width, height))


def test_special_tokens_of_the_box_syntax_leave_its_numbers(qwen: Path) -> None:
    model = ready(qwen, box_extract="box_1000")
    model._processor.tokenizer.add_tokens(list(BOX_MARKS), special_tokens=True)
    reply = saying(
        model, "<|object_ref_start|>the cat (red)<|object_ref_end|><|box_start|>(100,200),(500,1000)<|box_end|>"
    )
    assert "<|" not in reply
    assert extract("box_1000", reply, sample_of(640, 480)) == (64.0, 96.0, 320.0, 480.0)


@given(st.integers(4, 60), st.integers(4, 60), st.data())
@settings(max_examples=30, deadline=None)
def test_fractions_of_the_padded_square_become_pixels(width: int, height: int, data: st.DataObject) -> None:
    """A white rectangle is looked for in the picture that the model is given."""
    left, top = data.draw(st.integers(0, width - 2)), data.draw(st.integers(0, height - 2))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    picture = Image.new("RGB", (width, height))
    picture.paste((255, 255, 255), (left, top, right, bottom))
    square = padded(picture, (0.5, 0.5, 0.5))
    rows, columns = np.nonzero(np.asarray(square)[:, :, 0] == 255)
    corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    reply = "[" + ", ".join(f"{corner / square.width:.9f}" for corner in corners) + "]"
    found = extract("box_square", reply, sample_of(width, height))
    assert found == pytest.approx((left, top, right, bottom), abs=1e-5)


def test_settings_that_do_not_fit_the_boxes_are_refused(qwen: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.pad_to_square=true"):
        Chat(checkpoint="x/y", box_extract="box_square")
    with pytest.raises(ConfigError, match=r"longest_edge: 12845056"):
        Chat(checkpoint="x/y", box_extract="box_resized:28")
    with pytest.raises(ModelError, match=r"multiples of 28, but .* multiples of 14: say box_resized:14"):
        ready(qwen, box_extract="box_resized:28", image_options=LIMITS)
    assert ready(qwen, box_extract="box_resized:14:784:4900").box_extract == "box_resized:14:784:4900"


def test_image_options_move_the_extraction() -> None:
    model = build_model(
        {
            "_target_": "evalkit.models.chat.Chat",
            "checkpoint": "x/y",
            "box_extract": "box_resized:28",
            "image_options": {"size": {"shortest_edge": 3136, "longest_edge": 1003520}},
        }
    )
    assert getattr(model, "box_extract", None) == "box_resized:28:3136:1003520"


def test_a_run_records_how_boxes_were_read_and_can_be_scored_again(
    qwen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=qwen2.5-vl", f"model.checkpoint={qwen}", "model.box_extract=box_resized:14", "task=refcoco"]
    limit = "model.image_options.size.longest_edge=4900"
    assert main([*words, limit, "data=demo", "limit=3", f"out={tmp_path}"]) == 0, capsys.readouterr().err
    [scores] = tmp_path.rglob("scores.json")
    before = scores.read_bytes()
    assert json.loads(before)["extract"] == "box_resized:14:3136:4900"
    scores.unlink()
    assert main(["score", str(scores.parent)]) == 0, capsys.readouterr().err
    assert scores.read_bytes() == before
