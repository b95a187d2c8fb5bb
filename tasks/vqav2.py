"""VQAv2: open questions about COCO photographs, ten people's answers each.

Goyal et al., "Making the V in VQA Matter" (CVPR 2017). val has public answers (214,354 questions on 40,504 images);
test-dev (107,394) and test (447,793) are scored by a server, so evalkit writes the file it takes. Metric: VQA
accuracy, by default as the official script has computed it since 2021; `metric_variant=legacy` is the older code that
BLIP-2 and Qwen-VL shipped. Images: COCO val2014 and test2015.
"""

from __future__ import annotations

import functools

from evalkit.data import IMAGES
from evalkit.formats import answer_list, best_answer, records, vqa_sample, vqa_samples
from evalkit.metrics.vqa import vqa_accuracy, vqa_metric
from evalkit.prompts import VQA_PROMPTS
from evalkit.types import Dataset, Decoding, Expected, Hub, ResultFormat, Slot, Source, Task

PERFECT = functools.partial(best_answer, accuracy=functools.partial(vqa_accuracy, variant="official"))


def load(source: Source, *, split: str) -> Dataset:
    """Read questions and, on val, annotations; the server keeps those of the other splits.

    The server wants an answer to every question of test, also in its test-dev phase: where that file is there, its
    other ids become the dataset's `unasked`.
    """
    if source.kind == "hub":
        rows = enumerate(source.rows())
        samples = tuple(vqa_sample(row, row if split == "val" else None, f"row {number}") for number, row in rows)
    else:
        samples = vqa_samples(source, annotated=split == "val")
    unasked: tuple[str, ...] = ()
    if split == "test-dev" and source.kind == "files" and source.has("test_questions"):
        asked = {sample.id for sample in samples}
        ids = (str(record.get("question_id")) for record in records(source, "test_questions", "questions"))
        unasked = tuple(identity for identity in ids if identity not in asked)
    return Dataset(samples=samples, images=source.images(), unasked=unasked, candidates=answer_list(source))


_ANSWERS = Slot(name="answers", default="answer_list.json", required=False, summary="answers to rank, a list of texts")


def _questions(split: str, name: str = "questions", *, required: bool = True) -> Slot:
    default = f"v2_OpenEnded_mscoco_{split}_questions.json"
    return Slot(name=name, default=default, required=required, summary="official JSON")


def _images(folder: str) -> Slot:
    return Slot(name=IMAGES, default=folder, required=False, summary="folder of COCO images")


_SPLITS = {
    "val": (
        "public answers",
        (
            _questions("val2014"),
            Slot(name="annotations", default="v2_mscoco_val2014_annotations.json", summary="official JSON"),
            _ANSWERS,
            _images("val2014"),
        ),
        "validation",
        Expected(samples=214_354, images=40_504, source="visualqa.org: val2014"),
    ),
    "test-dev": (
        "scored by the server",
        (
            _questions("test-dev2015"),
            _questions("test2015", "test_questions", required=False),
            _ANSWERS,
            _images("test2015"),
        ),
        "testdev",
        Expected(samples=107_394, source="card of lmms-lab/VQAv2"),
    ),
    "test": (
        "test-standard, scored by the server",
        (_questions("test2015"), _ANSWERS, _images("test2015")),
        "test",
        Expected(samples=447_793, images=81_434, source="visualqa.org: test2015"),
    ),
}

TASKS = tuple(
    Task(
        name=f"vqav2/{variant}",
        kind="generate",
        summary=f"VQAv2 {variant}: open questions about COCO photographs ({note})",
        load=functools.partial(load, split=variant),
        metrics=(vqa_metric("official"),),
        primary="vqa_accuracy",
        variant="official",
        by_variant=vqa_metric,
        prompts=VQA_PROMPTS,
        decoding=Decoding(max_new_tokens=10),
        extract="first_line",
        slots=slots,
        hub=Hub(
            repo="lmms-lab/VQAv2",
            split=hub_split,
            revision="32665d35052eb4a6d4414851c3c829a72754915a",
            image_id_column="image_id",
        ),
        expected=expected,
        results=ResultFormat(
            id_key="question_id", answer_key="answer", records=447_793 if variant == "test-dev" else None
        ),
        breakdowns=("answer_type", "question_type"),
        perfect=PERFECT if variant == "val" else None,
    )
    for variant, (note, slots, hub_split, expected) in _SPLITS.items()
)
