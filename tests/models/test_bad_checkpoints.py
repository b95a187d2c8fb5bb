"""What cannot be run, as a user of the command line meets it: one paragraph, exit code 2, and nothing else printed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.support import Ran

from . import tiny

FAMILIES: Mapping[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    # name: (how a good one is made, model and task)
    "blip2": (tiny.blip2_text, ("model=blip2-opt", "task=vqav2")),
    "blip": (lambda folder: tiny.blip(folder, "vqa"), ("model=blip-vqa", "task=gqa")),
    "clip": (lambda folder: tiny.dual(folder, "clip"), ("model=clip", "task=retrieval")),
    "llava": (lambda folder: tiny.chat(folder, "llava"), ("model=llava-1.5-7b", "task=vqav2")),
    "qwen2_vl": (lambda folder: tiny.chat(folder, "qwen2_vl"), ("model=qwen2-vl", "task=textvqa")),
}
PROCESSORS = ("preprocessor_config.json", "processor_config.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = FAMILIES[family][0](tmp_path_factory.mktemp(family))
        return made[family]

    return get


def told(ran: Ran) -> str:
    """Return the one paragraph a refusal prints."""
    assert (ran.code, ran.out) == (2, ""), ran
    assert ran.err.startswith("evalkit: "), ran.err
    assert ran.err.count("\n") == 1, ran.err
    return ran.paragraph


def write(*names: str, text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in names:
            if (folder / name).is_file():
                (folder / name).write_text(text)

    return damage


def drop(*patterns: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return damage


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def rename(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lose_one_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in sorted(weights) if "norm" in name))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def many_wide(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = "many"
    (folder / "config.json").write_text(json.dumps(config))


DAMAGES: Mapping[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    # name: (what is done to a good folder, what must be said)
    "truncated weights": (truncate, ("is not whole", "copy it again")),
    "pickle": (rename, ("pytorch_model.bin", "safetensors only", "save_pretrained")),
    "a weight is lost": (lose_one_weight, ("would be random",)),
    "no image processor": (drop(*PROCESSORS), ("no image processor", "copy the file")),
    "no tokenizer": (drop("tokenizer*", "special_tokens*"), ("no tokenizer", "copy these files")),
    "empty configuration": (write("config.json", text="{}"), ("model_type", "copy it again")),
    "torn configuration": (write("config.json", text='{"model_type": "bl'), ("config.json", "not valid JSON")),
    "odd configuration": (many_wide, ("config.json", "'hidden_size'", "transformers", "copy it again")),
    "unknown family": (write("config.json", text='{"model_type": "blip9"}'), ("'blip9'",)),
    "torn tokenizer": (write("tokenizer.json", text='{"a": '), ("the tokenizer of", "copy its files")),
    "odd tokenizer": (
        write("tokenizer.json", text='{"version": "1.0", "added_tokens": [], "model": {"type": "No"}}'),
        ("the tokenizer of", "copy its files"),
    ),
    "odd image processor": (write(*PROCESSORS, text="[1, 2]"), ("the image processor of", "_config.json", "copy it")),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint(
    family: str, name: str, whole: Callable[[str], Path], command: Callable[..., Ran], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole(family), tmp_path / "folder"))
    damage, says = DAMAGES[name]
    damage(folder)
    paragraph = told(command(*FAMILIES[family][1], "model.checkpoint=./folder", "data=demo", "limit=2"))
    for words in (*says, "folder"):
        assert words in paragraph
    assert not list(tmp_path.rglob("predictions/*.jsonl"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_another_family(family: str, whole: Callable[[str], Path], command: Callable[..., Ran]) -> None:
    other, its = ("blip2", "'blip-2'") if family != "blip2" else ("llava", "'llava'")
    paragraph = told(command(*FAMILIES[family][1], f"model.checkpoint={whole(other)}", "data=demo", "limit=2"))
    assert its in paragraph
    assert "evalkit list" in paragraph


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("model.device=cuda", ("model.device=cuda", "model.device=cpu")),
        ("model.device=gpu0", ("model.device=gpu0", "cuda:1")),
        ("model.attention=nonsense", ("model.attention=nonsense", "leave it out")),
        ("model.quantization=int8", ("model.quantization=int8", "pip install bitsandbytes")),
        ("model.checkpoint=./nowhere", ("'./nowhere'", "neither a folder")),
        ("model.checkpoint=no-one-here/no-such-model", ("no folder here", "hf download", "model.checkpoint=DIR")),
    ],
)
@pytest.mark.parametrize("family", ["blip2", "llava"])
def test_a_setting_that_this_machine_cannot_honour(
    family: str,
    setting: str,
    says: tuple[str, ...],
    whole: Callable[[str], Path],
    command: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    if setting == "model.quantization=int8":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    good = () if "checkpoint" in setting else (f"model.checkpoint={whole(family)}",)
    paragraph = told(command(*FAMILIES[family][1], *good, setting, "data=demo", "limit=2"))
    for words in says:
        assert words in paragraph


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for turn in messages %}{{ turn.role }", ("TemplateSyntaxError", "copy the file again")),
        ("{% for turn in messages %}{{ turn.no.such }}{% endfor %}", ("UndefinedError", "copy the file again")),
        ("{{ raise_exception('Only user turns') }}", ("Only user turns",)),
        ("{% for turn in messages %}{{ 'a' + turn.content }}{% endfor %}", ("TypeError",)),
        ("USER: What is this? ASSISTANT:", ("put one image and the question", "for text only")),
        ("IMAGE ASSISTANT:", ("put one image and the question", "'What is this?' stands in it 0 times")),
    ],
)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_chat_template_that_cannot_be_used(
    family: str,
    template: str,
    says: tuple[str, ...],
    whole: Callable[[str], Path],
    command: Callable[..., Ran],
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(whole(family), tmp_path / "folder"))
    token = "<image>" if family == "llava" else "<|image_pad|>"
    (folder / "chat_template.jinja").write_text(template.replace("IMAGE", token))
    paragraph = told(command(*FAMILIES[family][1], "model.checkpoint=./folder", "data=demo", "limit=2"))
    for words in ("chat template", *says):
        assert words in paragraph
