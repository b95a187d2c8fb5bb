"""python -m pytest tests/test_hub.py: hub tables, as local parquet files with the columns of the real ones."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evalkit.data import load_dataset
from evalkit.errors import ConfigError, DataError
from evalkit.hub import HubSource
from evalkit.registry import known_tasks, load_tasks, resolve_task
from evalkit.testing import check_task
from evalkit.types import Dataset, MetricSettings
from tests.official import CAPTIONS, GQA, human


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def picture(colour: str = "red", size: tuple[int, int] = (40, 30)) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": "x.png"}


def write(path: Path, rows: Sequence[Mapping[str, Any]], features: Mapping[str, Any]) -> Path:
    """Write a table as the hub keeps it: parquet with the features in its metadata."""
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row[name] for row in rows] for name in features}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)
    return path


def load(name: str, root: Path, **kwargs: Any) -> Dataset:
    dataset = load_dataset(resolve_task(name), kind="hub", root=root, check=False, **kwargs)
    assert dataset.stamps == ("unchecked",)
    assert str(root) not in dataset.source
    return dataset


def strings(*names: str) -> dict[str, Any]:
    import datasets

    return {name: datasets.Value("string") for name in names}


def integers(*names: str) -> dict[str, Any]:
    import datasets

    return {name: datasets.Value("int64") for name in names}


def write_vqav2(path: Path, *, blind: bool = False) -> Path:
    import datasets

    rows = [
        {
            "question_type": "what is the",
            "multiple_choice_answer": "talking",
            "answers": None if blind else human("talking"),
            "image_id": 139,
            "answer_type": "other",
            "question_id": 139000 + place,
            "question": "What is the woman doing?",
            "image": picture(),
        }
        for place in range(3)
    ]
    answer = {**strings("answer", "answer_confidence"), **integers("answer_id")}
    features = {
        **strings("question_type", "multiple_choice_answer", "answer_type", "question"),
        **integers("image_id", "question_id"),
        "answers": [answer],
        "image": datasets.Image(),
    }
    return write(path, rows, features)


def write_okvqa(path: Path) -> Path:
    import datasets

    rows = [
        {
            "question_id": str(key),
            "image": picture(),
            "question": "What sport is this?",
            "answers": ["race"] * 6 + ["ride"] * 4,
            "question_type": "one",
            "answer_type": "other",
        }
        for key in (2971475, 2971476, 3397615)
    ]
    features = {
        **strings("question_id", "question", "question_type", "answer_type"),
        "answers": [datasets.Value("string")],
        "image": datasets.Image(),
    }
    return write(path, rows, features)


def write_gqa(root: Path, split: str, *, blind: bool = False) -> Path:
    import datasets

    rows = [
        {
            "id": key,
            **{name: row[name] for name in ("imageId", "question", "answer", "fullAnswer", "isBalanced", "groups")},
            "types": row["types"],
            "entailed": "['201307251', '7']",
            "equivalent": f"['{key}']",
            "semantic": row["semantic"],
            "semanticStr": "",
        }
        for key, row in GQA.items()
    ]
    step = {**strings("operation", "argument"), "dependencies": [datasets.Value("int32")]}
    hidden = {
        **strings("answer", "fullAnswer", "entailed", "equivalent", "semanticStr"),
        "groups": strings("global", "local"),
        "types": strings("detailed", "semantic", "structural"),
        "semantic": [step],
    }
    features = {
        **strings("id", "imageId", "question"),
        "isBalanced": datasets.Value("bool"),
        **({} if blind else hidden),
    }
    write(root / f"{split}_balanced_instructions/{split}-00000-of-00001.parquet", rows, features)
    images = [{"id": row["imageId"], "image": picture()} for row in GQA.values()]
    image_features = {**strings("id"), "image": datasets.Image()}
    return write(root / f"{split}_balanced_images/{split}-00000-of-00001.parquet", images, image_features)


def write_textvqa(path: Path, *, blind: bool = False) -> Path:
    import datasets

    rows = [
        {
            "image_id": "003a8ae2ef43b901",
            "question_id": 34602 + place,
            "question": "what is the brand of this camera?",
            "question_tokens": ["what"],
            "image": picture(),
            "image_width": 40,
            "image_height": 30,
            "answers": [""] * 10 if blind else ["dakota"] * 10,
            "image_classes": ["Camera"],
            "set_name": "val",
            "ocr_tokens": ["DAKOTA"],
        }
        for place in range(2)
    ]
    features = {
        **strings("image_id", "question", "set_name"),
        **integers("question_id", "image_width", "image_height"),
        **{name: [datasets.Value("string")] for name in ("question_tokens", "answers", "image_classes", "ocr_tokens")},
        "image": datasets.Image(),
    }
    return write(path, rows, features)


def write_nocaps(path: Path, *, blind: bool = False) -> Path:
    import datasets

    rows = [
        {
            "image": picture(),
            "image_coco_url": "",
            "image_date_captured": "",
            "image_file_name": f"0013ea208702090{place}.jpg",
            "image_height": 30,
            "image_width": 40,
            "image_id": place,
            "image_license": 0,
            "image_open_images_id": f"0013ea208702090{place}",
            "annotations_ids": [] if blind else [10 * place, 10 * place + 1, 10 * place + 2],
            "annotations_captions": [] if blind else texts,
        }
        for place, texts in enumerate(CAPTIONS.values())
    ]
    features = {
        **strings("image_coco_url", "image_date_captured", "image_file_name", "image_open_images_id"),
        **integers("image_height", "image_width", "image_id", "image_license"),
        "annotations_ids": [datasets.Value("int32")],
        "annotations_captions": [datasets.Value("string")],
        "image": datasets.Image(),
    }
    return write(path, rows, features)


def write_karpathy(path: Path) -> Path:
    import datasets

    rows = [
        {
            "filepath": "val2014",
            "sentids": [10 * place, 10 * place + 1, 10 * place + 2],
            "filename": f"COCO_val2014_{key:012d}.jpg",
            "imgid": place,
            "split": "val" if "validation" in path.name else "test",
            "sentences": texts,
            "cocoid": key,
            "url": "http://images.cocodataset.org/x.jpg",
        }
        for place, (key, texts) in enumerate(CAPTIONS.items())
    ]
    features = {
        **strings("filepath", "filename", "split", "url"),
        **integers("imgid", "cocoid"),
        "sentids": [datasets.Value("int64")],
        "sentences": [datasets.Value("string")],
    }
    return write(path, rows, features)


def write_flickr(path: Path, *, splits: Sequence[str] | None = ("train", "test", "test")) -> Path:
    import datasets

    rows = [
        {
            "image": picture(),
            "caption": texts,
            "sentids": [str(10 * place + i) for i in range(3)],
            "split": splits[place] if splits else "",
            "img_id": str(place),
            "filename": f"{key}00.jpg",
        }
        for place, (key, texts) in enumerate(CAPTIONS.items())
    ]
    features = {
        **strings("img_id", "filename"),
        **(strings("split") if splits else {}),
        **{name: [datasets.Value("string")] for name in ("caption", "sentids")},
        "image": datasets.Image(),
    }
    return write(path, rows, features)


def write_refcoco(path: Path) -> Path:
    import datasets

    rows = [
        {
            "question_id": str(place),
            "image": picture(),
            "question": "Please describe ...",
            "answer": texts,
            "segmentation": [1.0, 2.0],
            "bbox": [4.5, 3.0, 20.0, 15.0],
            "iscrowd": 0,
            "file_name": f"COCO_train2014_{139:012d}_{place}.jpg",
        }
        for place, texts in enumerate((["man in red", "left guy"], ["bear"]))
    ]
    features = {
        **strings("question_id", "question", "file_name"),
        **integers("iscrowd"),
        "answer": [datasets.Value("string")],
        **{name: [datasets.Value("float32")] for name in ("segmentation", "bbox")},
        "image": datasets.Image(),
    }
    return write(path, rows, features)


CAPTION_METRICS = MetricSettings(names=("Bleu_1", "ROUGE_L", "CIDEr"))


def check(name: str, dataset: Dataset, root: Path) -> None:
    task = resolve_task(name)
    captions = task.primary == "CIDEr"
    task_without_domains = task if name != "nocaps" else type(task)(**{**vars(task), "breakdowns": ()})
    check_task(
        task_without_domains,
        dataset,
        source=HubSource(task, root=root),
        maximum={"ROUGE_L": 1.0} if captions else None,
        settings=CAPTION_METRICS if captions else None,
    )


def test_vqav2(tmp_path: Path) -> None:
    write_vqav2(tmp_path / "data/validation-00000-of-00001.parquet")
    dataset = load("vqav2", tmp_path)
    check("vqav2", dataset, tmp_path)
    assert dataset.samples[0].image_ids == ("139",)
    assert dataset.samples[0].reference["answers"][9] == {"answer": "talking", "answer_id": 10}
    assert dataset.images.open("139").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(("name", "split"), [("vqav2/test-dev", "testdev"), ("vqav2/test", "test")])
def test_vqav2_test_splits_are_blind(tmp_path: Path, name: str, split: str) -> None:
    write_vqav2(tmp_path / f"data/{split}-00000-of-00001.parquet", blind=True)
    assert [sample.reference for sample in load(name, tmp_path).samples] == [None] * 3


def test_okvqa_knows_its_images_by_the_question_ids(tmp_path: Path) -> None:
    write_okvqa(tmp_path / "data/val2014-00000-of-00001.parquet")
    dataset = load("okvqa", tmp_path)
    check("okvqa", dataset, tmp_path)
    assert [sample.image_ids for sample in dataset.samples] == [("297147",), ("297147",), ("339761",)]
    assert dataset.images.open("339761").size == (40, 30)
    assert dataset.samples[0].reference["answers"][9] == {"answer": "ride", "answer_id": 10}


def test_gqa_joins_questions_and_images(tmp_path: Path) -> None:
    write_gqa(tmp_path, "testdev")
    dataset = load("gqa", tmp_path)
    check("gqa", dataset, tmp_path)
    assert dataset.samples[1].reference["entailed"] == ["201307251", "7"]
    assert dataset.samples[1].reference["semantic"][1] == {"operation": "query", "argument": "name"}
    assert dataset.images.open("n161313").size == (40, 30)
    write_gqa(tmp_path / "blind", "test", blind=True)
    assert [sample.reference for sample in load("gqa/test", tmp_path / "blind").samples] == [None, None]


def test_textvqa(tmp_path: Path) -> None:
    write_textvqa(tmp_path / "data/validation-00000-of-00003.parquet")
    check("textvqa", load("textvqa", tmp_path), tmp_path)
    write_textvqa(tmp_path / "data/test-00000-of-00003.parquet", blind=True)
    assert load("textvqa/test", tmp_path).samples[0].reference is None


def test_nocaps_has_no_domain_there(tmp_path: Path) -> None:
    write_nocaps(tmp_path / "data/validation-00000-of-00003-9ac41c0db1646ae3.parquet")
    dataset = load("nocaps", tmp_path)
    check("nocaps", dataset, tmp_path)
    assert dataset.samples[2].id == "2"
    assert dataset.images.open(dataset.samples[2].image_ids[0]).size == (40, 30)
    write_nocaps(tmp_path / "data/test-00000-of-00007.parquet", blind=True)
    assert load("nocaps/test", tmp_path).samples[0].reference is None


def test_karpathy_has_no_images_there(tmp_path: Path) -> None:
    write_karpathy(tmp_path / "data/test-00000-of-00001.parquet")
    write_karpathy(tmp_path / "data/validation-00000-of-00001.parquet")
    dataset = load("coco_caption", tmp_path, images_needed=False)
    check("coco_caption", dataset, tmp_path)
    assert len(load("coco_caption/val", tmp_path, images_needed=False).samples) == 3
    with pytest.raises(DataError, match=r"yerevann/coco-karpathy holds no images: give data\.images=DIR"):
        load("coco_caption", tmp_path)
    folder = tmp_path / "images"
    for key in CAPTIONS:
        (folder / "val2014").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 5)).save(folder / f"val2014/COCO_val2014_{key:012d}.jpg")
    dataset = load("retrieval", tmp_path, given={"images": folder})
    check("retrieval", dataset, tmp_path)
    assert [text.id for text in dataset.texts[:4]] == ["0", "1", "2", "10"]


def test_flickr30k_takes_the_rows_of_the_split(tmp_path: Path) -> None:
    write_flickr(tmp_path / "TEST/test/0000.parquet")
    dataset = load("retrieval/flickr30k", tmp_path)
    check("retrieval/flickr30k", dataset, tmp_path)
    assert [sample.id for sample in dataset.samples] == ["28500", "63200"]
    assert dataset.images.open("28500").size == (40, 30)


def test_flickr30k_without_splits_is_refused_by_its_count(tmp_path: Path) -> None:
    write_flickr(tmp_path / "data/test-00000-of-00009.parquet", splits=None)
    with pytest.raises(DataError, match="3 samples, official 1,000"):
        load_dataset(resolve_task("retrieval/flickr30k"), kind="hub", root=tmp_path)


def test_refcoco_takes_sizes_from_the_headers(tmp_path: Path) -> None:
    write_refcoco(tmp_path / "data/testA-00000-of-00001.parquet")
    dataset = load("refcoco/testA", tmp_path)
    check("refcoco/testA", dataset, tmp_path)
    assert [sample.id for sample in dataset.samples] == ["0.0", "0.1", "1.0"]
    assert dataset.samples[0].fields == {"expression": "man in red", "width": 40, "height": 30}
    assert dataset.samples[0].reference == {"box": [4.5, 3.0, 24.5, 18.0]}


def test_a_missing_split_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no parquet file of lmms-lab/VQAv2 for split 'validation'.*data/validation-00000-of-"
    ):
        load("vqav2", tmp_path)


def test_a_broken_table_is_refused(tmp_path: Path) -> None:
    path = write_vqav2(tmp_path / "data/validation-00000-of-00001.parquet")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="parquet files of lmms-lab/VQAv2"):
        load("vqav2", tmp_path)


def test_a_table_without_its_columns_names_those_it_has(tmp_path: Path) -> None:
    write(tmp_path / "data/validation-00000-of-00001.parquet", [{"question": "?"}], strings("question"))
    with pytest.raises(DataError, match="row 0 has no 'answers'; it has question"):
        load("vqav2", tmp_path)


def test_files_by_slot_do_not_mix_with_a_hub_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file slot of a hub dataset 'questions'.*use data=files"):
        load_dataset(resolve_task("vqav2"), kind="hub", root=tmp_path, given={"questions": tmp_path / "q.json"})


def test_every_hub_address_is_pinned() -> None:
    for family in known_tasks():
        for task in load_tasks(family):
            assert task.hub is not None or family == "imagenet"  # whose rows name no image
            assert task.hub is None or task.hub.revision != "main", task.name
