"""The picture world as files: always the same, whole or not there, in the official formats."""

import hashlib
import json
import multiprocessing
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evalkit.demo import files, graph_files
from evalkit.demo.world import ensure_world
from evalkit.errors import DataError
from evalkit.pickles import load_plain

FINGERPRINT = "c5b5c53f862da3dd1ff3a931dd3a121483763bbffe9a7ed01339980d14bad979"


def read(path: Path) -> object:
    if path.suffix == ".p":
        return load_plain(path.read_bytes(), path.name)
    return json.loads(path.read_text(encoding="utf-8"))


def fingerprint(root: Path) -> str:
    """Hash names, decoded pixels and JSON bytes: what a PNG looks like compressed depends on the zlib in use."""
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        digest.update(path.relative_to(root).as_posix().encode())
        if path.suffix == ".png":
            digest.update(np.asarray(Image.open(path).convert("RGB")).tobytes())
        elif path.suffix == ".p":
            digest.update(json.dumps(read(path)).encode())
        else:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def test_same_pixels_and_bytes_for_one_generator_version(world):
    assert fingerprint(world) == FINGERPRINT, "a changed world needs a new files.VERSION, and a new constant here"


def test_a_second_call_draws_nothing(world):
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*.json")}
    assert ensure_world(world.parent) == world
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*.json")} == before


def test_half_a_world_is_never_used(tmp_path, monkeypatch):
    def stop(root: Path) -> None:
        (root / "vqav2").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("evalkit.demo.world.write_world", stop)
    with pytest.raises(KeyboardInterrupt):
        ensure_world(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_the_mark_of_completeness_is_set_aside_and_drawn_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("evalkit.demo.world.write_world", lambda root: (root / "new").touch())
    stale = tmp_path / f"picture-world-{files.VERSION}"
    stale.mkdir()
    (stale / "old").touch()
    root = ensure_world(tmp_path)
    assert (root / "new").exists()
    assert not (root / "old").exists()


def test_two_processes_at_once_get_the_same_whole_world(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        roots = pool.map(ensure_world, [tmp_path, tmp_path])
    assert roots[0] == roots[1]
    assert [path.name for path in tmp_path.iterdir()] == [roots[0].name]
    assert (roots[0] / "coco" / "dataset_coco.json").is_file()


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="EVALKIT_CACHE"):
        ensure_world(tmp_path / "file")


def test_every_picture_is_64_pixels_and_lossless(world):
    pictures = list(world.rglob("*.png"))
    assert len(pictures) == 200 + 150 + 80 + 150 + 180
    scene = files.val_scenes()[0]
    stored = Image.open(world / "coco" / "val2014" / f"COCO_val2014_{files.coco_id(scene):012d}.png")
    assert stored.size == (64, 64)
    assert np.array_equal(np.asarray(stored), np.asarray(files.picture(scene)))


@pytest.mark.parametrize(
    ("folder", "prefix", "questions"), [("vqav2", "v2_", 1000), ("okvqa", "", 380)], ids=["vqav2", "okvqa"]
)
def test_vqa_pairs(world, folder, prefix, questions):
    asked = read(world / folder / f"{prefix}OpenEnded_mscoco_val2014_questions.json")
    answered = read(world / folder / f"{prefix}mscoco_val2014_annotations.json")
    assert {"info", "license", "task_type", "data_type", "data_subtype", "questions"} == set(asked)
    assert {"info", "license", "data_type", "data_subtype", "annotations"} == set(answered)
    ids = [question["question_id"] for question in asked["questions"]]
    assert ids == [annotation["question_id"] for annotation in answered["annotations"]]
    assert len(set(ids)) == len(ids) >= questions
    assert all(question["question_id"] // 1000 == question["image_id"] for question in asked["questions"])
    for annotation in answered["annotations"]:
        assert [answer["answer_id"] for answer in annotation["answers"]] == list(range(1, 11))
        image = world / "coco" / "val2014" / f"COCO_val2014_{annotation['image_id']:012d}.png"
        assert image.is_file()


def test_vqav2_answers(world):
    annotations = read(world / "vqav2" / "v2_mscoco_val2014_annotations.json")["annotations"]
    unanimous = 0
    for annotation in annotations:
        answers = Counter(answer["answer"].lower() for answer in annotation["answers"])
        assert answers.most_common(1)[0][0] == annotation["multiple_choice_answer"]
        assert {"answer", "answer_confidence", "answer_id"} == set(annotation["answers"][0])
        assert annotation["answer_type"] in ("yes/no", "number", "other")
        assert (annotation["answer_type"] == "yes/no") == (annotation["multiple_choice_answer"] in ("yes", "no"))
        unanimous += len(answers) == 1
    assert 0.2 < unanimous / len(annotations) < 0.8, "people should disagree at times"
    types = Counter(annotation["answer_type"] for annotation in annotations)
    assert min(types.values()) > 100
    yes_no = Counter(a["multiple_choice_answer"] for a in annotations if a["answer_type"] == "yes/no")
    assert 0.4 < yes_no["yes"] / sum(yes_no.values()) < 0.6


def test_vqav2_has_several_questions_an_image(world):
    questions = read(world / "vqav2" / "v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
    per_image = Counter(question["image_id"] for question in questions)
    assert len(per_image) >= 120
    assert min(per_image.values()) >= 4


def test_okvqa_answers_come_in_pairs_with_stems(world):
    annotations = read(world / "okvqa" / "mscoco_val2014_annotations.json")["annotations"]
    for annotation in annotations:
        texts = [answer["raw_answer"] for answer in annotation["answers"]]
        assert texts[0::2] == texts[1::2]
        assert {"answer_id", "raw_answer", "answer_confidence", "answer"} == set(annotation["answers"][0])
    stemmed = [a for each in annotations for a in each["answers"] if a["answer"] != a["raw_answer"]]
    assert any(answer["raw_answer"] == "cherries" and answer["answer"] == "cherry" for answer in stemmed)


@pytest.mark.parametrize(
    ("folder", "annotations"),
    [("vqav2", "v2_mscoco_val2014_annotations.json"), ("okvqa", "mscoco_val2014_annotations.json")],
)
def test_answer_lists_hold_nearly_every_answer(world, folder, annotations):
    answers = read(world / folder / "answer_list.json")
    assert len(set(answers)) == len(answers) > 30
    most_frequent = [
        Counter(answer["answer"] for answer in annotation["answers"]).most_common(1)[0][0]
        for annotation in read(world / folder / annotations)["annotations"]
    ]
    assert sum(answer in answers for answer in most_frequent) / len(most_frequent) > 0.95


def test_textvqa(world):
    value = read(world / "textvqa" / "TextVQA_0.5.1_val.json")
    assert {"dataset_type", "dataset_name", "dataset_version", "data"} == set(value)
    assert len(value["data"]) >= 120
    ids = [row["question_id"] for row in value["data"]]
    assert len(set(ids)) == len(ids)
    for row in value["data"]:
        assert len(row["answers"]) == 10
        assert (world / "textvqa" / "train_images" / f"{row['image_id']}.png").is_file()
    numbers = sum(row["answers"][0].isdigit() for row in value["data"])
    assert numbers > 50, "numbers should not be rare among the signs"


def test_karpathy_file(world):
    value = read(world / "coco" / "dataset_coco.json")
    splits = Counter(image["split"] for image in value["images"])
    assert set(splits) == {"train", "restval", "val", "test"}
    assert splits["test"] == 150
    assert [image["imgid"] for image in value["images"]] == list(range(len(value["images"])))
    sentences = [sentence for image in value["images"] for sentence in image["sentences"]]
    assert [sentence["sentid"] for sentence in sentences] == list(range(len(sentences)))
    assert {len(image["sentences"]) for image in value["images"]} == {5, 6}
    for image in value["images"]:
        assert {"filepath", "sentids", "filename", "imgid", "split", "sentences", "cocoid"} == set(image)
        assert image["sentids"] == [sentence["sentid"] for sentence in image["sentences"]]
        assert {"tokens", "raw", "imgid", "sentid"} == set(image["sentences"][0])
        assert (world / "coco" / image["filepath"] / image["filename"]).is_file()
        assert f"{image['cocoid']:012d}" in image["filename"]


def test_coco_caption_file_holds_karpathys_sentences(world):
    value = read(world / "coco" / "annotations" / "captions_val2014.json")
    karpathy = read(world / "coco" / "dataset_coco.json")["images"]
    expected = {s["sentid"]: s["raw"] for i in karpathy if i["filepath"] == "val2014" for s in i["sentences"]}
    assert {annotation["id"]: annotation["caption"] for annotation in value["annotations"]} == expected


def test_nocaps_domains(world):
    value = read(world / "nocaps" / "nocaps_val_4500_captions.json")
    domains = Counter(image["domain"] for image in value["images"])
    assert domains == {"in-domain": 60, "near-domain": 60, "out-domain": 60}
    captions = Counter(annotation["image_id"] for annotation in value["annotations"])
    assert set(captions.values()) == {10}
    assert set(captions) == {image["id"] for image in value["images"]}
    for image in value["images"]:
        assert (world / "nocaps" / "val" / image["file_name"]).is_file()


def test_gqa(world):
    questions = read(world / "gqa" / "testdev_balanced_questions.json")
    choices = read(world / "gqa" / "testdev_choices.json")
    graphs = read(world / "gqa" / "testdev_sceneGraphs.json")
    fields = {"semantic", "entailed", "equivalent", "question", "imageId", "isBalanced", "groups", "answer"}
    assert set(choices) == set(questions)
    for key, question in questions.items():
        assert fields | {"semanticStr", "annotations", "types", "fullAnswer"} == set(question)
        assert set(question["types"]) == {"detailed", "semantic", "structural"}
        assert question["types"]["structural"] in ("query", "verify", "choose", "logical", "compare")
        assert question["answer"] in choices[key]["valid"]
        assert question["answer"] in choices[key]["plausible"]
        assert set(question["entailed"]) <= set(questions) - {key}
        assert all(questions[other]["imageId"] == question["imageId"] for other in question["entailed"])
        assert (world / "gqa" / "images" / f"{question['imageId']}.png").is_file()
        assert question["imageId"] in graphs
        for place, step in enumerate(question["semantic"]):
            assert all(dependency < place for dependency in step["dependencies"])
    assert sum(bool(question["entailed"]) for question in questions.values()) > 100
    assert len(questions) > 5 * graph_files.IMAGES


def test_refcoco(world):
    refs = read(world / "refcoco" / "refs(unc).p")
    instances = read(world / "refcoco" / "instances.json")
    assert (world / "refcoco" / "refs(unc).p").read_bytes()[:2] == b"\x80\x02", "pickle protocol 2"
    boxes = {annotation["id"]: annotation for annotation in instances["annotations"]}
    assert len(boxes) == len(instances["annotations"])
    images = {image["id"]: image for image in instances["images"]}
    sentences = [sentence for ref in refs for sentence in ref["sentences"]]
    assert len({sentence["sent_id"] for sentence in sentences}) == len(sentences)
    per_split = Counter(ref["split"] for ref in refs for _ in ref["sentences"])
    assert set(per_split) == {"val", "testA", "testB"}
    assert per_split["val"] >= 250
    for ref in refs:
        box = boxes[ref["ann_id"]]
        assert box["image_id"] == ref["image_id"]
        assert box["category_id"] == ref["category_id"]
        x, y, width, height = box["bbox"]
        assert x >= 0
        assert y >= 0
        assert x + width <= 64
        assert y + height <= 64
        assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]]
        assert (world / "coco" / "train2014" / images[ref["image_id"]]["file_name"]).is_file()
