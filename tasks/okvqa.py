"""OK-VQA: questions about COCO photographs that need knowledge from outside the picture.

Marino et al., "OK-VQA" (CVPR 2019), version 1.1: `answer` is stemmed, five people's answers count twice. What papers
call the test set is the val2014 file (5,046 questions on 5,033 images). Metric: VQA accuracy; BLIP-2 also reduced its
predictions to lemmas (`extract=first_line+lemmatize`), others stemmed them. The hub table keeps the texts of the
answers only, without ids; they are numbered by position.
"""

from __future__ import annotations

import functools

from evalkit.data import IMAGES
from evalkit.formats import answer_list, best_answer, need_id, vqa_sample, vqa_samples
from evalkit.images import AliasImages
from evalkit.metrics.vqa import vqa_accuracy, vqa_metric
from evalkit.prompts import VQA_PROMPTS
from evalkit.types import Dataset, Decoding, Expected, Hub, ResultFormat, Slot, Source, Task

PERFECT = functools.partial(best_answer, accuracy=functools.partial(vqa_accuracy, variant="official"))


def load(source: Source) -> Dataset:
    """Read questions and annotations."""
    if source.kind == "hub":
        return _load_hub(source)
    samples = vqa_samples(source, annotated=True)
    return Dataset(samples=samples, images=source.images(), candidates=answer_list(source))


def _load_hub(source: Source) -> Dataset:
    """Read the hub table, which names no image: question ids are the COCO image id and one more digit."""
    samples = []
    first: dict[str, str] = {}
    for number, row in enumerate(source.rows()):
        question = need_id(row, "question_id", f"row {number}")
        first.setdefault(question[:-1], question)
        samples.append(vqa_sample({**row, "image_id": question[:-1]}, row, f"row {number}"))
    return Dataset(samples=tuple(samples), images=AliasImages(source.images(), first))


TASKS = (
    Task(
        name="okvqa/val",
        kind="generate",
        summary="OK-VQA val (papers say test): questions that need outside knowledge",
        load=load,
        metrics=(vqa_metric("official"),),
        primary="vqa_accuracy",
        variant="official",
        by_variant=vqa_metric,
        prompts=VQA_PROMPTS,
        decoding=Decoding(max_new_tokens=10),
        extract="first_line",
        slots=(
            Slot(name="questions", default="OpenEnded_mscoco_val2014_questions.json", summary="official JSON"),
            Slot(
                name="annotations", default="mscoco_val2014_annotations.json", summary="official JSON, 10 answers each"
            ),
            Slot(
                name="answers", default="answer_list.json", required=False, summary="answers to rank, a list of texts"
            ),
            Slot(name=IMAGES, default="val2014", required=False, summary="folder of COCO images"),
        ),
        hub=Hub(
            repo="lmms-lab/OK-VQA",
            split="val2014",
            revision="c9f858961f4095a9aeef615057b0822cce967096",
            image_id_column="question_id",
        ),
        expected=Expected(
            samples=5_046,
            images=5_033,
            fingerprint="9b0ff38a4e6c23a3708f7507e533123e4365bcd40d97424acc8b77b3ed984c48",
            source="OpenEnded_mscoco_val2014_questions.json",
        ),
        results=ResultFormat(id_key="question_id", answer_key="answer"),
        breakdowns=("question_type",),
        perfect=PERFECT,
    ),
)
