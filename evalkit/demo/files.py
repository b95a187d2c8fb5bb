"""The world's evaluation sets, each in the official file format and under the official file names.

coco/val2014, coco/train2014                      pictures, shared by VQAv2, OK-VQA, captions, retrieval, RefCOCO
coco/dataset_coco.json                            Karpathy's splits and captions
coco/annotations/captions_val2014.json            COCO's own caption file
vqav2, okvqa, gqa, textvqa, nocaps, refcoco       annotation files; their own pictures where the original has some
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from evalkit.demo import graph_files
from evalkit.demo.annotators import five_twice, ten_answers
from evalkit.demo.draw import picture
from evalkit.demo.language import captions, expressions
from evalkit.demo.questions import Question, knowledge_questions, text_questions, vqa_questions
from evalkit.demo.scenes import SIDE, Domain, Scene, familiar, make_scene
from evalkit.demo.shapes import SHAPES, SUB, template
from evalkit.demo.words import UNSEEN_WORDS

VERSION = 3
"""Raised whenever a pixel or a byte of the files moves."""

FIRST_SEED = 50_000_000
"""No scene from here on is ever trained on."""

VAL_IMAGES, TRAIN_IMAGES, TEXT_IMAGES, DOMAIN_IMAGES = 200, 150, 150, 60
_LICENSE = {"name": "Apache License 2.0", "url": "http://www.apache.org/licenses/LICENSE-2.0"}
_INFO = {"description": "A picture world drawn by evalkit", "version": str(VERSION), "year": 2026}
_DATE = "2026-01-01 00:00:00"


def write_json(path: Path, value: Any) -> None:
    """Write a file with the same bytes for the same value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, separators=(",", ":")), encoding="utf-8")


def save_picture(scene: Scene, path: Path) -> None:
    """Write a scene as PNG, which loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(scene).save(path, format="PNG", compress_level=1)


def coco_id(scene: Scene) -> int:
    """Return the COCO image id of a scene: its place in the world."""
    return scene.seed - FIRST_SEED


def val_scenes() -> list[Scene]:
    """Return the scenes that stand for COCO val2014: familiar things only."""
    return [make_scene(FIRST_SEED + 1_000 + 7 * i, "in") for i in range(VAL_IMAGES)]


def train_scenes() -> list[Scene]:
    """Return the scenes that stand for COCO train2014, where RefCOCO's pictures come from."""
    return [make_scene(FIRST_SEED + 100_000 + 11 * i, "any", i % 5 == 0) for i in range(TRAIN_IMAGES)]


def text_scenes() -> list[Scene]:
    """Return the scenes of TextVQA: every one has a sign, one in eight with a word that no training picture has."""
    scenes = [make_scene(FIRST_SEED + 200_000 + i, "any", True) for i in range(TEXT_IMAGES)]
    return [_with_unseen_word(scene) if number % 8 == 0 else scene for number, scene in enumerate(scenes)]


def _with_unseen_word(scene: Scene) -> Scene:
    """Return the scene with another word of the same length on its sign, where there is one."""
    assert scene.sign is not None
    same_length = [word for word in UNSEEN_WORDS if len(word) == len(scene.sign.text)]
    if not same_length:
        return scene
    word = random.Random(f"unseen {scene.seed}").choice(same_length)
    return dataclasses.replace(scene, sign=dataclasses.replace(scene.sign, text=word))


def domain_scenes() -> list[tuple[str, Scene]]:
    """Return NoCaps' scenes with their domain: familiar, with a held-out pair, of novel shapes."""
    names: tuple[tuple[str, Domain], ...] = (("in-domain", "in"), ("near-domain", "near"), ("out-domain", "out"))
    return [
        (name, make_scene(FIRST_SEED + 300_000 + 3 * i + place, domain))
        for i in range(DOMAIN_IMAGES)
        for place, (name, domain) in enumerate(names)
    ]


def write_world(root: Path) -> None:
    """Write all pictures and annotation files below `root`."""
    val, train = val_scenes(), train_scenes()
    for split, scenes in (("val2014", val), ("train2014", train)):
        for scene in scenes:
            save_picture(scene, root / "coco" / split / f"COCO_{split}_{coco_id(scene):012d}.png")
    _write_vqav2(root / "vqav2", val)
    _write_okvqa(root / "okvqa", val)
    _write_coco(root / "coco", val, train)
    _write_refcoco(root / "refcoco", train)
    _write_textvqa(root / "textvqa")
    _write_nocaps(root / "nocaps")
    for scene in graph_files.write_gqa(root / "gqa", FIRST_SEED + 400_000, write_json):
        save_picture(scene, root / "gqa" / "images" / f"{graph_files.image_id(scene)}.png")


def _vqa_pair(
    folder: Path, names: tuple[str, str], asked: list[tuple[Scene, list[Question]]], *, knowledge: bool
) -> None:
    """Write VQA's questions file and annotations file."""
    questions, annotations = [], []
    for scene, found in asked:
        for number, question in enumerate(found):
            key = coco_id(scene) * 1000 + number
            rng = random.Random(f"answers {key} {knowledge}")
            questions.append({"image_id": coco_id(scene), "question": question.text, "question_id": key})
            annotation: dict[str, Any] = {
                "question_type": question.type,
                "multiple_choice_answer": question.answer,
                "answers": (five_twice if knowledge else ten_answers)(question, rng),
                "image_id": coco_id(scene),
                "answer_type": "other" if knowledge else question.answer_type,
                "question_id": key,
            }
            if knowledge:
                del annotation["multiple_choice_answer"]
                annotation["confidence"] = 3
            annotations.append(annotation)
    head = {"info": _INFO, "license": _LICENSE, "data_type": "mscoco", "data_subtype": "val2014"}
    write_json(folder / names[0], {**head, "task_type": "Open-Ended", "questions": questions})
    write_json(folder / names[1], {**head, "annotations": annotations})


def _write_vqav2(folder: Path, scenes: list[Scene]) -> None:
    asked = [(scene, vqa_questions(scene, random.Random(f"vqav2 {scene.seed}"), 5)) for scene in scenes]
    names = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
    _vqa_pair(folder, names, asked, knowledge=False)
    asked_before = (vqa_questions(scene, random.Random(f"list {scene.seed}"), 5) for scene in _list_scenes())
    _write_answer_list(folder, asked_before)


def _write_okvqa(folder: Path, scenes: list[Scene]) -> None:
    asked = [(scene, knowledge_questions(scene, random.Random(f"okvqa {scene.seed}"), 2)) for scene in scenes]
    names = "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"
    _vqa_pair(folder, names, asked, knowledge=True)
    asked_before = (knowledge_questions(scene, random.Random(f"list {scene.seed}"), 2) for scene in _list_scenes())
    _write_answer_list(folder, asked_before)


def _list_scenes() -> Iterator[Scene]:
    """Yield scenes whose answers make the lists to rank: as for the originals, other ones than those asked about."""
    return (make_scene(FIRST_SEED + 500_000 + i, "in") for i in range(VAL_IMAGES))


def _write_answer_list(folder: Path, asked: Iterable[list[Question]]) -> None:
    """Write the answers to these questions in LAVIS's form, the most frequent first."""
    counts = Counter(question.answer for questions in asked for question in questions)
    write_json(folder / "answer_list.json", [answer for answer, _ in counts.most_common()])


def _write_coco(folder: Path, val: list[Scene], train: list[Scene]) -> None:
    """Write Karpathy's file (test 150, val 30, restval 20, the familiar ones of train) and COCO's own for val2014."""
    images, own_images, annotations = [], [], []
    sentence = 0
    placed = [("test" if i < 150 else "val" if i < 180 else "restval", "val2014", s) for i, s in enumerate(val)]
    placed += [("train", "train2014", scene) for scene in train if familiar(scene)]
    for number, (split, part, scene) in enumerate(placed):
        rng = random.Random(f"captions {scene.seed}")
        texts = captions(scene, rng, 6 if number % 25 == 3 else 5)
        sentences = []
        for text in texts:
            raw = text[0].upper() + text[1:] + "." if rng.random() < 0.5 else text
            sentences.append({"tokens": text.replace(",", "").split(), "raw": raw, "imgid": number, "sentid": sentence})
            if part == "val2014":
                annotations.append({"image_id": coco_id(scene), "id": sentence, "caption": raw})
            sentence += 1
        filename = f"COCO_{part}_{coco_id(scene):012d}.png"
        images.append(
            {
                "filepath": part,
                "sentids": [each["sentid"] for each in sentences],
                "filename": filename,
                "imgid": number,
                "split": split,
                "sentences": sentences,
                "cocoid": coco_id(scene),
            }
        )
        if part == "val2014":
            own_images.append(_image(coco_id(scene), filename))
    write_json(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})
    own = {"info": _INFO, "images": own_images, "licenses": [{"id": 1, **_LICENSE}], "annotations": annotations}
    write_json(folder / "annotations" / "captions_val2014.json", own)


def _image(key: int, filename: str) -> dict[str, Any]:
    return {
        "license": 1,
        "file_name": filename,
        "coco_url": "",
        "height": SIDE,
        "width": SIDE,
        "date_captured": _DATE,
        "flickr_url": "",
        "id": key,
    }


def _write_refcoco(folder: Path, scenes: list[Scene]) -> None:
    """Write refs and instances; testA refers to round things (the original: people), testB to all others."""
    refs: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    sent_id = 0
    for number, scene in enumerate(scenes):
        rng = random.Random(f"refcoco {scene.seed}")
        split = "val" if number < 90 else "test"
        asked = 0
        for thing in scene.things:
            box = thing.box
            ann_id = coco_id(scene) * 10 + thing.index
            category = SHAPES.index(thing.shape) + 1
            annotations.append(
                {
                    "segmentation": [[box[0], box[1], box[2], box[1], box[2], box[3], box[0], box[3]]],
                    "area": float(template(thing.shape, thing.radius).sum()) / SUB**2,
                    "iscrowd": 0,
                    "image_id": coco_id(scene),
                    "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])],
                    "category_id": category,
                    "id": ann_id,
                }
            )
            found = expressions(scene, thing, rng, 3)
            if not found or asked == 3:
                continue
            asked += 1
            round_one = thing.shape in ("circle", "ring", "moon", "heart")
            sentences = []
            for text, _ in found:
                raw = text.capitalize() if rng.random() < 0.3 else text
                sentences.append({"tokens": text.split(), "raw": raw, "sent_id": sent_id, "sent": text})
                sent_id += 1
            refs.append(
                {
                    "sent_ids": [sentence["sent_id"] for sentence in sentences],
                    "file_name": f"COCO_train2014_{coco_id(scene):012d}_{ann_id}.jpg",
                    "ann_id": ann_id,
                    "ref_id": len(refs),
                    "image_id": coco_id(scene),
                    "split": split if split == "val" else "testA" if round_one else "testB",
                    "sentences": sentences,
                    "category_id": category,
                }
            )
    images = [_image(coco_id(scene), f"COCO_train2014_{coco_id(scene):012d}.png") for scene in scenes]
    categories = [{"supercategory": "shape", "id": i, "name": shape} for i, shape in enumerate(SHAPES, start=1)]
    write_json(
        folder / "instances.json",
        {
            "info": _INFO,
            "images": images,
            "licenses": [{"id": 1, **_LICENSE}],
            "annotations": annotations,
            "categories": categories,
        },
    )
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))


def _write_textvqa(folder: Path) -> None:
    data: list[dict[str, Any]] = []
    for scene in text_scenes():
        image_id = f"{scene.seed:016x}"
        save_picture(scene, folder / "train_images" / f"{image_id}.png")
        rng = random.Random(f"textvqa {scene.seed}")
        for question in text_questions(scene, rng):
            answers = [str(answer["answer"]) for answer in ten_answers(question, rng)]
            data.append(
                {
                    "question": question.text,
                    "image_id": image_id,
                    "image_classes": ["Sign"],
                    "flickr_original_url": "",
                    "flickr_300k_url": "",
                    "image_width": SIDE,
                    "image_height": SIDE,
                    "answers": answers,
                    "question_tokens": question.text.lower().rstrip("?").split(),
                    "question_id": 34602 + len(data),
                    "set_name": "val",
                }
            )
    head = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    write_json(folder / "TextVQA_0.5.1_val.json", {**head, "data": data})


def _write_nocaps(folder: Path) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (domain, scene) in enumerate(domain_scenes()):
        key = f"{scene.seed:016x}"
        save_picture(scene, folder / "val" / f"{key}.png")
        rng = random.Random(f"nocaps {scene.seed}")
        image = _image(number, f"{key}.png")
        images.append({**image, "open_images_id": key, "domain": domain})
        for text in captions(scene, rng, 10):
            annotations.append(
                {"image_id": number, "id": len(annotations), "caption": text[0].upper() + text[1:] + "."}
            )
    write_json(
        folder / "nocaps_val_4500_captions.json",
        {"licenses": [{"id": 1, **_LICENSE}], "info": _INFO, "images": images, "annotations": annotations},
    )
