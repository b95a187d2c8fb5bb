"""python -m pytest tests/tasks/test_contract.py: every task keeps the promises that `check_task` lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalkit.data import FilesSource, load_dataset
from evalkit.registry import known_tasks, load_tasks
from evalkit.testing import check_task
from evalkit.types import MetricSettings, Task
from tests.official import write_all
from tests.support import shared

TASKS = [task for family in known_tasks() for task in load_tasks(family)]
NO_JAVA = MetricSettings(names=("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"))
CAPTIONS = {"Bleu_1": 1.0, "ROUGE_L": 1.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("official"))


def test_the_variants_are_those_of_the_releases() -> None:
    assert {task.name for task in TASKS} == {
        *("vqav2/val", "vqav2/test-dev", "vqav2/test", "okvqa/val", "gqa/testdev", "gqa/val", "gqa/test"),
        *("textvqa/val", "textvqa/test", "nocaps/val", "nocaps/test", "coco_caption/test", "coco_caption/val"),
        *("refcoco/val", "refcoco/testA", "refcoco/testB", "refcoco/plus-val", "refcoco/plus-testA"),
        *("refcoco/plus-testB", "refcoco/g-val", "refcoco/g-test", "retrieval/coco", "retrieval/flickr30k"),
        *("imagenet/val", "imagenet/wordnet"),
    }


def _settings(task: Task) -> tuple[dict[str, float] | None, MetricSettings | None]:
    return (CAPTIONS, NO_JAVA) if task.primary == "CIDEr" else (None, None)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_task_keeps_its_promises_on_official_files(task: Task, root: Path) -> None:
    dataset = load_dataset(task, kind="files", root=root, check=False)
    maximum, settings = _settings(task)
    source = FilesSource(task.slots, root, {}, task.family)
    check_task(task, dataset, source=source, maximum=maximum, settings=settings)
    # Three names of classes are not OpenAI's thousand.
    assert dataset.stamps == (("custom", "unchecked") if task.name == "imagenet/val" else ("unchecked",))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_images_of_every_task_open(task: Task, root: Path) -> None:
    dataset = load_dataset(task, kind="files", root=root, check=False)
    for sample in dataset.samples:
        assert dataset.images.open(sample.image_ids[0]).size == (40, 30)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_small_sets_are_not_taken_for_the_official_ones(task: Task, root: Path) -> None:
    assert task.expected is not None
    assert task.expected.samples is not None
    with pytest.raises(Exception, match=f"official {task.expected.samples:,}"):
        load_dataset(task, kind="files", root=root)


REAL = {
    "gqa": {"questions": "data/gqa/testdev_balanced_questions.json.gz"},
    "vqav2": {
        "questions": "data/vqav2/ovqa_smallval/smallval_questions.json",
        "annotations": "data/vqav2/ovqa_smallval/smallval_annotations.json",
    },
    "textvqa": {
        "questions": "data/textvqa/val_questions_vqa_format.json.gz",
        "annotations": "data/textvqa/val_annotations_vqa_format.json.gz",
    },
    "coco_caption": {"annotations": "data/images/captions_for_images.json", "images": "data/images"},
    "retrieval": {"karpathy": "data/images/captions_for_images.json", "images": "data/images"},
}
REAL_MAXIMUM = {"vqav2": {}, "textvqa": {}}
"""Where people disagree, nobody scores 1; what the best answers score is no promise."""
REAL_FLOOR = {"textvqa": 0.004}
"""Some people answered "." or "the", which is nothing once cleaned."""


@pytest.mark.parametrize("family", sorted(REAL))
def test_every_task_keeps_its_promises_on_real_files(family: str) -> None:
    task = load_tasks(family)[0]
    given = {slot: shared(name) for slot, name in REAL[family].items()}
    dataset = load_dataset(task, kind="files", given=given, images_needed="images" in given)
    maximum, settings = _settings(task)
    source = FilesSource(task.slots, None, given, task.family)
    maximum = REAL_MAXIMUM.get(family, maximum)
    check_task(task, dataset, source=source, maximum=maximum, settings=settings, floor=REAL_FLOOR.get(family, 0))
    assert dataset.stamps == ("custom",)
