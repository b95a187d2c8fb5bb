"""Zero-shot classification against plain transformers: same class for every image, whoever compares and how many."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, Blip2ForImageTextRetrieval, BlipForImageTextRetrieval

from evalkit.models.blip2 import Blip2
from evalkit.registry import apply, resolve_task
from tests.support import Ran, answers, lines, only_run, run_evalkit, scores

from . import tiny

CLASSES = ("tench", "cat", "red fox", "kite (bird of prey)", "T-shirt", "missile", "photo", "missile")
NUM_IMAGES = 24
TEMPLATES = ("a photo of a {option}.", "art of the {option}.", "{option}")


def data(root: Path) -> list[Image.Image]:
    """Write ImageNet's files for a few classes of our own; return the pictures in the order of their ids."""
    folder = root / "ILSVRC/Data/CLS-LOC/val"
    folder.mkdir(parents=True)
    rng = random.Random(5)
    pictures, rows = [], ["ImageId,PredictionString"]
    for number in range(1, NUM_IMAGES + 1):
        blocks = Image.new("RGB", (3, 3))
        blocks.putdata([(rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(9)])
        picture = blocks.resize(rng.choice([(40, 30), (64, 64), (33, 64)]), Image.Resampling.NEAREST)
        name = f"ILSVRC2012_val_{number:08d}"
        picture.save(folder / f"{name}.JPEG", format="PNG")
        pictures.append(picture)
        rows.append(f"{name},n{number % len(CLASSES):08d} 1 1 9 9")
    (root / "LOC_val_solution.csv").write_text("\n".join(rows))
    (root / "LOC_synset_mapping.txt").write_text("\n".join(f"n{place:08d} x" for place in range(len(CLASSES))))
    (root / "en_classnames.json").write_text(json.dumps(CLASSES))
    return pictures


@pytest.fixture
def pictures(tmp_path: Path) -> list[Image.Image]:
    return data(tmp_path / "root")


def words(model: str, folder: Path, *more: str) -> list[str]:
    files = ["data=files", "data.root=root", "data.check=false"]
    return [f"model={model}", f"model.checkpoint={folder}", "task=imagenet", *files, *more]


def outputs(run: Path) -> list[str]:
    """Return what was chosen, in the order of the ids."""
    found = answers(run)
    assert all(error is None for _, _, error, _ in found.values())
    return [found[key][1] for key in sorted(found)]


def chosen(similarity_IT: np.ndarray[Any, Any]) -> list[str]:
    """Return the name of the largest similarity of each row, told apart by more than rounding, and not always one."""
    distinct_IT = similarity_IT[:, : CLASSES.index("missile") + 2]  # the second "missile" equals the first
    first, second = np.sort(distinct_IT, axis=1)[:, :-3:-1].T
    assert (first - second > 1e-5).all(), "the test's own model does not decide"
    names = [CLASSES[place] for place in similarity_IT.argmax(axis=1)]
    assert len(set(names)) > 1, names
    return names


def mean_unit(vectors_TD: torch.Tensor) -> torch.Tensor:
    """Return what the notebook of openai/CLIP makes of the embeddings of one class."""
    mean_D = torch.nn.functional.normalize(vectors_TD, dim=-1).mean(dim=0)
    return mean_D / mean_D.norm()


def plain_dual(folder: Path, pictures: list[Image.Image], templates: list[str]) -> np.ndarray[Any, Any]:
    """Return the similarities (I, T) of plain transformers: a class at a time, as the notebook does."""
    processor, model = AutoProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder)
    siglip = model.config.model_type == "siglip"
    classes = []
    with torch.no_grad():
        for name in CLASSES:
            texts = [template.replace("{option}", name) for template in templates]
            inputs = processor(
                text=texts, padding="max_length" if siglip else True, truncation=True, return_tensors="pt"
            )
            if siglip:
                inputs.pop("attention_mask", None)
            classes.append(mean_unit(model.get_text_features(**inputs, return_dict=True).pooler_output))
        pixels = processor(images=pictures, return_tensors="pt")
        images_ID = model.get_image_features(**pixels, return_dict=True).pooler_output
    return (torch.nn.functional.normalize(images_ID, dim=-1) @ torch.stack(classes).T).numpy()


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_paper_protocol_chooses_as_plain_transformers(
    family: str, tmp_path: Path, pictures: list[Image.Image], command: Callable[..., Ran]
) -> None:
    folder = tiny.dual(tmp_path / "twin", family)
    ran = command(*words(family, folder))
    assert ran.code == 0, ran.err
    prompts = resolve_task("imagenet").prompts["match" if family == "clip" else "match-bare"]
    expected = chosen(plain_dual(folder, pictures, prompts.splitlines()))
    run = only_run(tmp_path, "imagenet")
    assert outputs(run) == expected
    # The second "missile" cannot be right: its name is the answer of the first.
    right = [name == CLASSES[n % 8] and n % 8 != 7 for n, name in enumerate(expected, 1)]
    assert scores(run)["scores"] == {"accuracy": pytest.approx(np.mean(right))}
    assert len(scores(run)["intervals"]["accuracy"]) == 2
    assert scores(run)["stamps"] == ["custom", "unchecked"]
    # Eighty templates stand in the manifest, not in every line.
    assert {line["prompt"] for line in lines(run)} == {None}
    assert json.loads((run / "manifest.json").read_text())["task"]["prompt"] == prompts


def test_one_template_chooses_as_the_documented_call(
    tmp_path: Path, pictures: list[Image.Image], command: Callable[..., Ran]
) -> None:
    folder = tiny.dual(tmp_path / "twin", "clip")
    assert command(*words("clip", folder, "prompt=a photo of a {option}.")).code == 0
    processor, model = AutoProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder)
    texts = [f"a photo of a {name}." for name in CLASSES]
    with torch.no_grad():
        logits_IT = model(**processor(text=texts, images=pictures, return_tensors="pt", padding=True)).logits_per_image
    assert outputs(only_run(tmp_path, "imagenet")) == chosen(logits_IT.numpy())


def test_several_templates_on_the_command_line_and_other_names_are_other_runs(
    tmp_path: Path, pictures: list[Image.Image], command: Callable[..., Ran]
) -> None:
    folder = tiny.dual(tmp_path / "twin", "clip")
    asked = words("clip", folder, "prompt=" + "\n".join(TEMPLATES))
    assert command(*asked).code == 0
    run = only_run(tmp_path, "imagenet")
    assert outputs(run) == chosen(plain_dual(folder, pictures, list(TEMPLATES)))
    assert (
        "a photo of a {option}. (and 2 more, averaged)"
        in (tmp_path / "results/leaderboard-custom-unchecked.md").read_text()
    )
    (tmp_path / "root/en_classnames.json").write_text(json.dumps([*CLASSES[:-1], "rocket"]))
    assert command(*asked).code == 0
    assert len(list((tmp_path / "results/runs/imagenet").glob("*/*/manifest.json"))) == 2
    (tmp_path / "root/en_classnames.json").write_text(json.dumps(CLASSES))
    assert "were answered before" in command(*asked).err
    rescored = command("score", str(run))
    assert rescored.code == 0
    assert json.loads(rescored.out)["scores"] == scores(run)["scores"]


def test_a_line_that_names_no_option_is_refused(
    tmp_path: Path, pictures: list[Image.Image], command: Callable[..., Ran]
) -> None:
    ran = command(*words("clip", tmp_path / "nowhere", "prompt=a photo of a {option}.\n\nart of the {option}."))
    assert ran.code == 2
    assert "line '' has no {option}" in ran.paragraph


def test_a_language_model_takes_a_name_by_likelihood(
    tmp_path: Path, pictures: list[Image.Image], command: Callable[..., Ran]
) -> None:
    ran = command(*words("blip2-opt", tiny.blip2_text(tmp_path / "twin")))
    assert ran.code == 0, ran.err
    run = only_run(tmp_path, "imagenet")
    assert set(outputs(run)) <= set(CLASSES)  # `test_likelihood.py` holds the numbers
    assert {line["prompt"] for line in lines(run)} == {"Question: What is the main object in the photo? Answer:"}


@pytest.mark.slow
def test_two_worker_processes_choose_what_this_one_does(tmp_path: Path, pictures: list[Image.Image]) -> None:
    """How units are dealt out is for `test_workers.py`: one of the two may be done before the other has loaded."""
    folder = tiny.dual(tmp_path / "twin", "clip")
    small = words("clip", folder, "prompt_style=match-best", "engine.image_batch=3", "engine.prompt_batch=2")
    found = []
    for devices in (1, 2):
        out = tmp_path / f"runs{devices}"
        ran = run_evalkit(*small, f"devices={devices}", f"out={out}", cwd=tmp_path, timeout=300)
        assert ran.code == 0, ran.err
        [run] = (path.parent for path in out.rglob("manifest.json"))
        found.append((answers(run), (run / "scores.json").read_bytes()))
    assert found[0] == found[1]


def test_blip2_chooses_by_its_contrastive_half(
    tmp_path: Path, pictures: list[Image.Image], command: Callable[..., Ran]
) -> None:
    folder = tiny.blip2_matching(tmp_path / "twin")
    assert command(*words("blip2-itm", folder, "prompt=" + "\n".join(TEMPLATES))).code == 0
    processor = AutoProcessor.from_pretrained(folder)
    model = Blip2ForImageTextRetrieval.from_pretrained(folder)

    def embeds(picture: Image.Image, text: str) -> Any:
        inputs = processor(images=picture, text=text, return_tensors="pt")
        with torch.no_grad():  # without the matching head it gives the vectors it compares
            return model(**inputs, use_image_text_matching_head=False)

    classes = []
    for name in CLASSES:
        texts = [embeds(pictures[0], line.replace("{option}", name)).text_embeds[0] for line in TEMPLATES]
        classes.append(mean_unit(torch.stack(texts)))
    images_IQD = torch.cat([embeds(picture, "x").image_embeds for picture in pictures])
    similarity_IT = (images_IQD @ torch.stack(classes).T).max(dim=1).values
    assert outputs(only_run(tmp_path, "imagenet")) == chosen(similarity_IT.numpy())


def test_blip_chooses_by_its_contrastive_half(
    tmp_path: Path, pictures: list[Image.Image], command: Callable[..., Ran]
) -> None:
    folder = tiny.blip(tmp_path / "twin", "retrieve")
    ran = command(
        *words("blip-itm-coco", folder, "model.encoder_token=5", "image_size=28", "prompt=a photo of a {option}.")
    )
    assert ran.code == 0, ran.err
    processor = AutoProcessor.from_pretrained(folder)
    model = BlipForImageTextRetrieval.from_pretrained(folder)
    texts = processor.tokenizer(
        [f"a photo of a {name}." for name in CLASSES], padding=True, truncation=True, max_length=35, return_tensors="pt"
    )
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        similarity_IT = model(pixel_values=pixels, **texts, use_itm_head=False)[0]
    assert outputs(only_run(tmp_path, "imagenet")) == chosen(similarity_IT.numpy())


def test_a_checkpoint_of_two_halves_takes_the_one_that_the_prompt_asks_for(tmp_path: Path) -> None:
    tiny.blip2_text(tmp_path / "twin/generate")
    tiny.blip2_matching(tmp_path / "twin/retrieve")
    model = Blip2(checkpoint=str(tmp_path / "twin"), generate="generate", retrieve="retrieve")
    matching = resolve_task("imagenet")
    asking = apply(matching, overrides={"prompt_style": "completion"})
    assert (matching.matches, asking.matches) == (True, False)
    assert model.files(matching) == model.files(resolve_task("retrieval"))
    assert model.files(asking) == model.files(resolve_task("vqav2"))
    assert model.files(matching) != model.files(asking)
    assert "max_caption_tokens" in model.identity(matching)
    assert "max_caption_tokens" not in model.identity(asking)
    only_text = Blip2(checkpoint=str(tmp_path / "twin"), generate="generate")
    assert "needs 'itc'" in str(only_text.refuses(matching))
