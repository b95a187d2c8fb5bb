"""Every published (model, task) pair: the YAML's protocol, on a tiny twin of the model's architecture, end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.paths import bundled

from . import tiny
from .configs import MODELS


def twin_of(name: str) -> Callable[[Path], Path] | None:
    """Return how to make a tiny checkpoint of the architecture that this model has."""
    language = "t5" if "flant5" in name else "llama" if "vicuna" in name else "opt"
    if name.startswith("blip2-itm"):
        return tiny.blip2_matching
    if name.startswith(("blip2-opt", "blip2-flant5")):
        return lambda folder: tiny.blip2_text(folder, language)
    if name.startswith("instructblip"):
        return lambda folder: tiny.instructblip(folder, language)
    if name.startswith("blip-"):
        head = next(head for word, head in BLIP_HEADS.items() if word in name)
        return lambda folder: tiny.blip(folder, head)
    if name.startswith(("clip", "siglip")):
        return lambda folder: tiny.dual(folder, name.partition("-")[0])
    if name.startswith("qwen-vl"):
        return tiny.qwen_vl
    for word, family in CHATS.items():
        if name.startswith(word):
            return lambda folder: tiny.chat(folder, family)
    return None


BLIP_HEADS = {"vqa": "vqa", "caption": "caption", "itm": "retrieve"}
CHATS = {
    "llava-1.5": "llava",
    "llava-next": "llava_next",
    "qwen2-vl": "qwen2_vl",
    "qwen2.5-vl": "qwen2_5_vl",
    "qwen3-vl": "qwen3_vl",
}
NOT_HERE = ("api", "blip2-tiny", "blip2-tiny-early", "custom", "fake", "majority", "oracle")
"""Baselines and forms; the bundled model has tests of its own."""
IMPOSSIBLE = [("blip2-opt", "refcoco"), ("blip2-itm", "vqav2"), ("llava-1.5-7b", "retrieval"), ("clip", "coco_caption")]
"""Refused before anything loads: no box syntax, the wrong half, no embeddings, no text."""
NOT_IN_THE_WORLD = ("retrieval/flickr30k", "imagenet")
"""The picture world has one retrieval split, under COCO's name, and no ImageNet: `test_zero_shot.py` runs that."""

PAIRS = [
    (name, task)
    for name, run in MODELS.items()
    if name not in NOT_HERE
    for task in {
        **(run.protocol or {"vqav2": {}, "coco_caption": {}}),
        **({"refcoco": {}} if "box_extract" in run.model else {}),
    }
    if task not in NOT_IN_THE_WORLD
]


def arguments(name: str, task: str, folder: Path, out: Path) -> list[str]:
    tiny_settings = ["model.encoder_token=5"] if "encoder_token" in MODELS[name].model else []
    if "trust_remote_code" in MODELS[name].model:
        tiny_settings = ["model.trust_remote_code=true"]
    if "box_resized" in MODELS[name].model.get("box_extract", ""):
        tiny_settings = ["model.box_extract=box_resized:14"]  # twice the twin's patches of 7
    if "2048" in str(MODELS[name].protocol.get(task)):
        tiny_settings = ["decoding.max_new_tokens=100"]  # the twin has 2048 positions
    # LAVIS lemmatises with spaCy, which is optional.
    changes = ["extract=first_line"] if "lemmatize" in str(MODELS[name].protocol.get(task)) else []
    return [
        f"model={name}",
        f"model.checkpoint={folder}",
        *tiny_settings,
        *changes,
        f"task={task}",
        "data=demo",
        "limit=3",
        f"out={out}",
    ]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[Any, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            twin = twin_of(name)
            assert twin is not None
            made[name] = twin(tmp_path_factory.mktemp("twin"))
        return made[name]

    return get


def test_every_model_is_accounted_for() -> None:
    assert [name for name in MODELS if name not in NOT_HERE and twin_of(name) is None] == []
    assert len(PAIRS) > 40


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), PAIRS, ids=[f"{name}-{task}" for name, task in PAIRS])
def test_pair_runs(
    name: str, task: str, twins: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(name, task, twins(name), tmp_path / "runs")) == 0, capsys.readouterr().err
    [scores] = (tmp_path / "runs").rglob("scores.json")
    assert json.loads(scores.read_text())
    lines = [line for path in (tmp_path / "runs").rglob("predictions/*.jsonl") for line in path.open()]
    assert len(lines) == 3
    assert all(json.loads(line)["error"] is None for line in lines)


def test_ranking_without_an_answer_list_ends_before_anything_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GQA has no list of answers; without a checkpoint nothing can have been loaded."""
    words = ["model=blip-vqa", f"model.checkpoint={tmp_path / 'nowhere'}", "task=gqa", "data=demo"]
    assert main([*words, "decoding.rank_candidates=8", f"out={tmp_path / 'runs'}"]) == 2
    assert "decoding.rank_candidates=0" in capsys.readouterr().err


def test_the_page_of_pairs_is_what_show_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """Where this fails: put what `python -m evalkit show` prints between the marks of configs/model/README.md."""
    assert main(["show"]) == 0
    table, _ = capsys.readouterr().out.split("\n\n")
    page = (bundled("configs") / "model" / "README.md").read_text()
    assert page.split("<!-- show -->\n")[1] == table + "\n"


@pytest.mark.parametrize(("name", "task"), IMPOSSIBLE)
def test_a_pair_that_cannot_be_is_refused(
    name: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a checkpoint: nothing is loaded, or even looked for."""
    assert main(arguments(name, task, tmp_path / "nowhere", tmp_path / "runs")) == 2
    assert "needs" in capsys.readouterr().err
