"""The bundled checkpoints: loaded as anybody would load them, they answer about pictures they have never seen."""

import json
from pathlib import Path

import pytest

from evalkit.demo import files
from evalkit.demo.draw import picture

DEMO = Path(files.__file__).parent
NAMES = ("blip2-tiny", "blip2-tiny-early")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("half", ["generate", "retrieve"])
def test_a_checkpoint_is_small_and_holds_no_pickle(name, half):
    folder = DEMO / name / half
    found = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json"} <= set(found)
    assert all(file.endswith((".json", ".safetensors")) for file in found)
    assert sum(found.values()) < 4_000_000
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir()), "readable from an installed wheel"


@pytest.mark.parametrize("name", NAMES)
def test_plain_from_pretrained_answers(name, world):
    import torch
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    torch.set_num_threads(1)
    folder = DEMO / name / "generate"
    model = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = Blip2Processor.from_pretrained(folder)
    assert processor.num_query_tokens == model.config.num_query_tokens == 16
    assert processor.tokenizer.padding_side == "left"
    assert model.config.image_token_index == processor.tokenizer.convert_tokens_to_ids("<image>")
    annotations = json.loads((world / "vqav2" / "v2_mscoco_val2014_annotations.json").read_text())["annotations"]
    questions = json.loads((world / "vqav2" / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())["questions"]
    scenes = {files.coco_id(scene): scene for scene in files.val_scenes()[:20]}
    asked = [(q, a) for q, a in zip(questions, annotations, strict=True) if q["image_id"] in scenes]
    inputs = processor(
        images=[picture(scenes[q["image_id"]]) for q, _ in asked],
        text=[f"Question: {q['question']} Answer:" for q, _ in asked],
        padding=True,
        return_tensors="pt",
    )
    output = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    right = sum(t.strip() == a["multiple_choice_answer"] for t, (_, a) in zip(texts, asked, strict=True))
    floor = {"blip2-tiny": 0.65, "blip2-tiny-early": 0.3}[name]
    assert right / len(asked) > floor


@pytest.mark.parametrize("name", NAMES)
def test_plain_from_pretrained_matches(name):
    import torch
    from transformers import Blip2ForImageTextRetrieval, Blip2Processor

    from evalkit.demo.language import article, phrase, salient

    torch.set_num_threads(1)
    folder = DEMO / name / "retrieve"
    model = Blip2ForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32)
    processor = Blip2Processor.from_pretrained(folder)
    assert processor.tokenizer.padding_side == "right"
    scenes = files.val_scenes()[:16]
    texts = [article(phrase(salient(scene)[0], ("size", "color", "shape"))) for scene in scenes]
    inputs = processor(images=[picture(s) for s in scenes], text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        own = model(**inputs).logits_per_image
        same = model(**inputs, use_image_text_matching_head=True).logits_per_image[:, 1]
        inputs["pixel_values"] = inputs["pixel_values"].roll(1, 0)
        other = model(**inputs, use_image_text_matching_head=True).logits_per_image[:, 1]
    assert own.shape == (16, 16)
    assert own.diagonal().mean() > own.mean() + 0.05
    if name == "blip2-tiny":  # ITM comes late: the early checkpoint matches by ITC alone
        assert (same > other).float().mean() > 0.8
