"""OK-VQA: questions about COCO photographs that need knowledge from outside the picture.

Marino et al., "OK-VQA" (CVPR 2019), version 1.1: `answer` is stemmed, five people's answers count twice. What papers
call the test set is the val2014 file (5,046 questions on 5,033 images). Metric: VQA accuracy; BLIP-2 also reduced its
predictions to lemmas (`extract=first_line+lemmatize`), others stemmed them. The hub table keeps the texts of the
answers only, without ids; they are numbered by position.
"""

from __future__ import annotations

import functools

from evalkit.data import IMAGES
from evalkit.formats import answer_list, best_answer, vqa_sample, vqa_samples
from evalkit.metrics.vqa import vqa_accuracy, vqa_metric
from evalkit.prompts import VQA_PROMPTS
from evalkit.types import Dataset, Decoding, Expected, Hub, ResultFormat, Slot, Source, Task


PERFECT = functools.partial(best_answer, accuracy=functools.partial(vqa_accuracy, variant="official"))


def load(source: Source) -> Dataset:
    """Read questions and annotations; on the hub, an image is known by the question that shows it."""
    if source.kind == "hub":
        rows = ({**row, "image_id": row.get("question_id")} for row in source.rows())
        samples = tuple(vqa_sample(row, row, f"row {number}") for number, row in enumerate(rows))
    else:
        samples = vqa_samples(source, annotated=True)
    return Dataset(samples=samples, images=source.images(), candidates=answer_list(source))


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
        hub=Hub(repo="lmms-lab/OK-VQA", split="val2014", image_id_column="question_id"),
        expected=Expected(samples=5_046, source="card of HuggingFaceM4/OK-VQA: 5,046 questions on 5,033 images"),
        results=ResultFormat(id_key="question_id", answer_key="answer"),
        breakdowns=("question_type",),
        perfect=PERFECT,
    ),
)
