"""Small sets in the official file formats, laid out as the releases unpack: what several test files read."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

from PIL import Image

COCO_IDS = (139, 285, 632)


def write_json(path: Path, value: Any, *, zipped: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(value).encode()
    if zipped:
        path = path.with_name(f"{path.name}.gz")
        data = gzip.compress(data, mtime=0)
    path.write_bytes(data)
    return path


def write_image(path: Path, size: tuple[int, int] = (40, 30), colour: tuple[int, int, int] = (200, 30, 60)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def human(*answers: str) -> list[dict[str, Any]]:
    """Ten people's answers, the given ones in turn."""
    return [{"answer": answers[i % len(answers)], "answer_confidence": "yes", "answer_id": i + 1} for i in range(10)]


def vqa_pair(split: str = "val2014") -> tuple[dict[str, Any], dict[str, Any]]:
    rows = [
        (139, 139000, "What is the woman doing?", ("talking",), "other", "what is the"),
        (139, 139001, "How many yellow vases?", ("2",), "number", "how many"),
        (285, 285000, "Is it a bear?", ("yes",), "yes/no", "is it"),
        (632, 632000, "What colour is the bed?", ("white", "white", "cream"), "other", "what colour is the"),
    ]
    questions = [{"image_id": image, "question": text, "question_id": key} for image, key, text, *_ in rows]
    annotations = [
        {
            "question_type": kind,
            "multiple_choice_answer": answers[0],
            "answers": human(*answers),
            "image_id": image,
            "answer_type": answer_type,
            "question_id": key,
        }
        for image, key, _, answers, answer_type, kind in rows
    ]
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": split}
    return {**head, "task_type": "Open-Ended", "questions": questions}, {**head, "annotations": annotations}


GQA = {
    "201307251": {
        "semantic": [
            {"operation": "select", "dependencies": [], "argument": "scene"},
            {"operation": "verify weather", "dependencies": [0], "argument": "overcast"},
        ],
        "entailed": [],
        "equivalent": ["201307251"],
        "question": "Is it overcast?",
        "imageId": "n161313",
        "isBalanced": True,
        "groups": {"global": None, "local": "01-weather_overcast"},
        "answer": "no",
        "semanticStr": "select: scene->verify weather: overcast [0]",
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": "weatherVerifyC", "semantic": "global", "structural": "verify"},
        "fullAnswer": "No, it is clear.",
    },
    "201640614": {
        "semantic": [
            {"operation": "select", "dependencies": [], "argument": "dress (1)"},
            {"operation": "query", "dependencies": [0], "argument": "name"},
        ],
        "entailed": [],
        "equivalent": ["201640614"],
        "question": "Who is wearing the dress?",
        "imageId": "n235859",
        "isBalanced": True,
        "groups": {"global": "person", "local": "14-dress_wearing,s"},
        "answer": "woman",
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": "relS", "semantic": "rel", "structural": "query"},
        "fullAnswer": "The woman is wearing the dress.",
    },
}

CAPTIONS = {
    139: ["A woman stands in the dining area.", "A room with chairs and a table.", "A woman in a room."],
    285: ["A big burly grizzly bear.", "The large brown bear has a black nose.", "A bear in the grass."],
    632: ["Bedroom scene with a bookcase.", "A bedroom with a bookshelf full of books.", "A bed near a window."],
}


def coco_captions(domain: bool = False) -> dict[str, Any]:
    domains = ("in-domain", "near-domain", "out-domain")
    images = [
        {"id": key, "file_name": f"COCO_val2014_{key:012d}.jpg", "height": 30, "width": 40}
        | ({"domain": domains[place]} if domain else {})
        for place, key in enumerate(CAPTIONS)
    ]
    pairs = [(key, text) for key, texts in CAPTIONS.items() for text in texts]
    annotations = [{"image_id": key, "id": 100 + place, "caption": text} for place, (key, text) in enumerate(pairs)]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations}


def nocaps() -> dict[str, Any]:
    found = coco_captions(domain=True)
    for place, image in enumerate(found["images"]):
        for annotation in found["annotations"]:
            if annotation["image_id"] == image["id"]:
                annotation["image_id"] = place
        image |= {"id": place, "open_images_id": f"0013ea208702090{place}", "file_name": f"0013ea208702090{place}.jpg"}
    return found


def karpathy(dataset: str = "coco", splits: tuple[str, ...] = ("test", "test", "val")) -> dict[str, Any]:
    images, sentence = [], 100
    for place, (key, texts) in enumerate(CAPTIONS.items()):
        ids = list(range(sentence, sentence + len(texts)))
        sentence += len(texts)
        image: dict[str, Any] = {
            "imgid": place,
            "split": splits[place],
            "sentids": ids,
            "filename": f"COCO_val2014_{key:012d}.jpg" if dataset == "coco" else f"{key}00.jpg",
            "sentences": [
                {"tokens": text.lower().split(), "raw": text, "imgid": place, "sentid": number}
                for number, text in zip(ids, texts, strict=True)
            ],
        }
        if dataset == "coco":
            image |= {"filepath": "val2014", "cocoid": key}
        images.append(image)
    return {"images": images, "dataset": dataset}


def refs() -> list[dict[str, Any]]:
    def ref(key: int, split: str, *sentences: str) -> dict[str, Any]:
        return {
            "ref_id": key,
            "ann_id": 1000 + key,
            "category_id": 1,
            "image_id": COCO_IDS[key],
            "file_name": f"COCO_train2014_{COCO_IDS[key]:012d}_{key}.jpg",
            "split": split,
            "sent_ids": [10 * key + place for place in range(len(sentences))],
            "sentences": [
                {"raw": text.upper(), "sent": text, "sent_id": 10 * key + place, "tokens": text.split()}
                for place, text in enumerate(sentences)
            ],
        }

    return [ref(0, "val", "man in red", "left guy"), ref(1, "val", "bear"), ref(2, "testA", "woman")]


def instances() -> dict[str, Any]:
    images = [{"id": key, "file_name": f"COCO_train2014_{key:012d}.jpg", "height": 30, "width": 40} for key in COCO_IDS]
    boxes = [
        {"id": 1000 + place, "image_id": key, "category_id": 1, "bbox": [4.5 + place, 3.0, 20.0, 15.0], "iscrowd": 0}
        for place, key in enumerate(COCO_IDS)
    ]
    return {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "person"}]}


SYNSETS = ["n01440764 tench, Tinca tinca", "n01514668 cock", "n01514859 hen"]
SOLUTION = [
    "ImageId,PredictionString",
    "ILSVRC2012_val_00000003,n01514859 85 1 499 272 ",
    "ILSVRC2012_val_00000001,n01440764 1 1 9 9 n01440764 20 1 30 9 ",
    "ILSVRC2012_val_00000002,n01514859 0 0 10 10 ",
]
CLASSES = {"cifar10": ["airplane"], "imagenet1k": ["tench", "rooster", "hen"]}


def write_imagenet(root: Path) -> None:
    """Write ImageNet as its release unpacks it, and the names of the classes."""
    for name, lines in (("LOC_val_solution.csv", SOLUTION), ("LOC_synset_mapping.txt", SYNSETS)):
        (root / name).write_text("\n".join(lines) + "\n")
    write_json(root / "en_classnames.json", CLASSES)
    for place in (1, 2, 3):
        write_image(root / f"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_0000000{place}.JPEG")


def write_all(root: Path) -> Path:
    """Write a root with the official files of all benchmarks and their images."""
    write_imagenet(root)
    questions, annotations = vqa_pair()
    write_json(root / "v2_OpenEnded_mscoco_val2014_questions.json", questions)
    write_json(root / "v2_mscoco_val2014_annotations.json", annotations)
    for split in ("test-dev2015", "test2015"):
        write_json(root / f"vqav2/v2_OpenEnded_mscoco_{split}_questions.json", questions)
    write_json(root / "okvqa/OpenEnded_mscoco_val2014_questions.json", questions, zipped=True)
    for annotation in annotations["annotations"]:
        annotation["question_type"] = "one"
    write_json(root / "okvqa/mscoco_val2014_annotations.json", annotations, zipped=True)
    for split in ("testdev", "val"):
        write_json(root / f"gqa/{split}_balanced_questions.json", GQA)
    blind = {key: {name: row[name] for name in ("imageId", "question", "isBalanced")} for key, row in GQA.items()}
    write_json(root / "gqa/test_balanced_questions.json", blind)
    text_rows = [
        {
            "question_id": 34602 + place,
            "question": record["question"],
            "image_id": f"003a8ae2ef43b90{place}",
            "image_width": 40,
            "image_height": 30,
            "answers": [each["answer"] for each in annotation["answers"]],
            "set_name": "val",
        }
        for place, (record, annotation) in enumerate(
            zip(questions["questions"], annotations["annotations"], strict=True)
        )
    ]
    write_json(root / "textvqa/TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": text_rows})
    hidden = [{name: value for name, value in row.items() if name != "answers"} for row in text_rows]
    write_json(root / "textvqa/TextVQA_0.5.1_test.json", {"dataset_type": "test", "data": hidden})
    write_json(root / "nocaps/nocaps_val_4500_captions.json", nocaps())
    write_json(root / "nocaps/nocaps_test_image_info.json", {"images": nocaps()["images"]})
    write_json(root / "coco/annotations/captions_val2014.json", coco_captions())
    write_json(root / "dataset_coco.json", karpathy())
    write_json(root / "retrieval/dataset_flickr30k.json", karpathy("flickr30k"))
    for folder, owner in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")):
        write_json(root / folder / "instances.json", instances())
        found = refs()
        found.append({**found[2], "ref_id": 3, "split": "testB", "sentences": [{"sent": "cup", "sent_id": 30}]})
        found.append({**found[2], "ref_id": 4, "split": "test", "sentences": [{"sent": "dog", "sent_id": 40}]})
        (root / folder / f"refs({owner}).p").write_bytes(pickle.dumps(found, protocol=2))
    for key in COCO_IDS:
        for split in ("val2014", "train2014", "test2015"):
            write_image(root / f"coco/{split}/COCO_{split}_{key:012d}.jpg")
        write_image(root / f"retrieval/flickr30k-images/{key}00.jpg")
    for place in range(4):
        write_image(root / f"textvqa/train_images/003a8ae2ef43b90{place}.jpg")
        write_image(root / f"textvqa/test_images/003a8ae2ef43b90{place}.jpg")
        for split in ("val", "test"):
            write_image(root / f"nocaps/{split}/0013ea208702090{place}.jpg")
    for name in ("n161313", "n235859"):
        write_image(root / f"gqa/images/{name}.jpg")
    return root
