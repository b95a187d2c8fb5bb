"""Checkpoints that cannot be used: one clear paragraph each, before anything is computed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evalkit.errors import ConfigError, EvalkitError, UnsupportedError
from evalkit.models.blip2 import Blip2
from evalkit.models.checkpoints import Checkpoint, Loading

from . import tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.blip2_text(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def why(folder: Path | str) -> str:
    """What a user is told about this checkpoint."""

    def load() -> None:
        model = Blip2(checkpoint=str(folder))
        model.files(tiny.task())
        model.prepare(tiny.task())

    with pytest.raises(EvalkitError) as caught:
        load()
    message = str(caught.value)
    assert "\n\n" not in message
    return message


def test_truncated_weights(copy: Path) -> None:
    weights = copy / "model.safetensors"
    data = weights.read_bytes()
    for length in (0, 4, 100, len(data) - 1):
        weights.write_bytes(data[:length])
        assert "copy it again" in why(copy)


def test_pickled_weights(copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    message = why(copy)
    assert "pytorch_model.bin" in message
    assert "save_pretrained" in message


def test_pickles_beside_safetensors_are_left_alone(copy: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"never opened")
    model = Blip2(checkpoint=str(copy))
    assert "pytorch_model.bin" not in model.files(tiny.task())
    model.prepare(tiny.task())


def test_part_of_the_weights(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights.pop("qformer.layernorm.weight")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert "qformer.layernorm.weight" in why(copy)


def test_weights_of_another_size(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["language_projection.weight"] = torch.zeros(3, 3)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert "language_projection.weight" in why(copy)


def test_missing_shard_and_index_outside_the_folder(copy: Path) -> None:
    index = copy / "model.safetensors.index.json"
    (copy / "model.safetensors").unlink()
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    assert "lacks model-00001-of-00002.safetensors" in why(copy)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    assert "outside its folder" in why(copy)
    index.write_text("{")
    assert "broken" in why(copy)


def test_wrong_family(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "llava"}))
    assert "'llava'" in why(copy)
    (copy / "config.json").write_text("[1]")
    assert "list" in why(copy)
    (copy / "config.json").write_text("{")
    assert "JSON" in why(copy)


def test_no_processor_or_tokenizer(copy: Path) -> None:
    (copy / "processor_config.json").unlink()
    assert "no image processor" in why(copy)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    assert "no tokenizer" in why(copy)


def test_not_a_model(tmp_path: Path) -> None:
    assert "no config.json" in why(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "no weights" in why(tmp_path)
    assert "neither a folder nor a name on the hub" in why("./nowhere/at/all")
    assert "bundled" in why("demo:no-such-model")
    assert "bundled" in why("demo:../demo")


def test_hub_name_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    message = why("nobody/no-such-model")
    assert "nobody/no-such-model" in message
    assert "model.checkpoint=DIR" in message


def test_settings_are_checked_early(whole: Path) -> None:
    for settings, words in (
        ({"dtype": "float8"}, "model.dtype"),
        ({"quantization": "int3"}, "model.quantization"),
        ({"image_backend": "opencv"}, "model.image_backend"),
        ({"devise": "cpu"}, "did you mean 'device'"),
    ):
        with pytest.raises(ConfigError, match=words):
            Blip2(checkpoint=str(whole), **settings)


def test_settings_that_need_a_package(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for settings in ({"quantization": "int8"}, {"image_backend": "torchvision"}):
        with pytest.raises(UnsupportedError, match="pip install"):
            Blip2(checkpoint=str(whole), **settings)


def test_unknown_attention_is_refused(whole: Path) -> None:
    model = Blip2(checkpoint=str(whole), attention="no_such_attention")
    with pytest.raises(UnsupportedError, match="no_such_attention"):
        model.prepare(tiny.task())


def test_identity_says_what_changes_answers(whole: Path) -> None:
    identity = Blip2(checkpoint=str(whole), device="cpu").identity(tiny.task(image_size=28))
    assert identity["dtype"] == "float32"
    assert identity["image_backend"] == "pil"
    assert identity["image_size"] == 28
    assert json.loads(json.dumps(identity)) == identity
    assert str(whole) not in json.dumps(identity)
    other = Blip2(checkpoint=str(whole), device="cpu", dtype="bfloat16", attention="eager")
    assert other.identity(tiny.task(image_size=28)) != identity


def test_bfloat16_and_eager_attention_run(whole: Path) -> None:
    model = Blip2(checkpoint=str(whole), dtype="bfloat16", attention="eager")
    model.prepare(tiny.task())
    encoded = model.encode([model.preprocess(image) for image in tiny.pictures()])
    assert len(model.generate(encoded, tiny.prompts(), tiny.task().decoding)) == 20


def test_half_precision_file_is_read_as_float32(whole: Path, tmp_path: Path) -> None:
    from transformers import Blip2ForConditionalGeneration

    folder = Path(shutil.copytree(whole, tmp_path / "half"))
    Blip2ForConditionalGeneration.from_pretrained(whole, dtype=torch.float16).save_pretrained(folder)
    loaded = Loading().load(Checkpoint(str(folder)), "Blip2ForConditionalGeneration")
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
