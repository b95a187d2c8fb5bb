"""TextVQA: questions that are answered by reading the text in a photograph.

Singh et al., "Towards VQA Models That Can Read" (CVPR 2019), release 0.5.1. val: 5,000 questions on 3,166 OpenImages
photographs; test (5,734) is scored by a server. Metric: VQA accuracy of the M4C code, which cleans both sides always
(what the leaderboard and LLaVA use); Qwen-VL's number was made with `metric_variant=legacy`. Read from the release's
own file, or from a pair of files in VQA's format. No OCR tokens are in the prompt.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from evalkit.data import IMAGES
from evalkit.formats import best_answer, records, vqa_sample, vqa_samples
from evalkit.metrics.vqa import vqa_accuracy, vqa_metric
from evalkit.prompts import VQA_PROMPTS
from evalkit.types import Dataset, Decoding, Expected, Hub, ResultFormat, Sample, Slot, Source, Task

PERFECT = functools.partial(best_answer, accuracy=functools.partial(vqa_accuracy, variant="m4c"))


def load(source: Source, *, annotated: bool) -> Dataset:
    """Read the release's file, the VQA pair where `questions` is given, or the hub table."""
    if source.kind == "hub":
        samples = _samples(source.rows(), "row", annotated=annotated)
    elif source.has("questions") and not (source.has("annotations") and "data" in source.read("annotations")):
        samples = vqa_samples(source, annotated=annotated)
    else:
        where = f"{source.path('annotations').name}: question"
        samples = _samples(records(source, "annotations", "data"), where, annotated=annotated)
    return Dataset(samples=samples, images=source.images())


def _samples(rows: Sequence[Mapping[str, Any]], where: str, *, annotated: bool) -> tuple[Sample, ...]:
    return tuple(vqa_sample(row, row if annotated else None, f"{where} {number}") for number, row in enumerate(rows))


def _slots(split: str, images: str) -> tuple[Slot, ...]:
    return (
        Slot(
            name="annotations", default=f"TextVQA_0.5.1_{split}.json", summary="the release's JSON, or VQA annotations"
        ),
        Slot(name="questions", default=f"{split}_questions_vqa_format.json", required=False, summary="VQA questions"),
        Slot(name=IMAGES, default=images, required=False, summary="folder of images"),
    )


TASKS = tuple(
    Task(
        name=f"textvqa/{split}",
        kind="generate",
        summary=f"TextVQA {split}: questions answered by reading ({note})",
        load=functools.partial(load, annotated=split == "val"),
        metrics=(vqa_metric("m4c"),),
        primary="vqa_accuracy",
        variant="m4c",
        by_variant=vqa_metric,
        prompts=VQA_PROMPTS,
        decoding=Decoding(max_new_tokens=10),
        extract="first_line",
        slots=_slots(split, images),
        hub=Hub(
            repo="lmms-lab/textvqa",
            split=hub_split,
            revision="9c0699cd19768ac5ab97568f6b3cbac4c0062884",
            image_id_column="image_id",
        ),
        expected=expected,
        results=ResultFormat(id_key="question_id", answer_key="answer"),
        perfect=PERFECT if split == "val" else None,
    )
    for split, note, images, hub_split, expected in (
        (
            "val",
            "public answers",
            "train_images",
            "validation",
            Expected(
                samples=5_000,
                images=3_166,
                fingerprint="08a18c7a936269fe7aaa56864f239da02876d19d1d7884e1e0aa1013cab53b90",
                source="TextVQA 0.5.1",
            ),
        ),
        (
            "test",
            "scored by the server",
            "test_images",
            "test",
            Expected(samples=5_734, source="card of lmms-lab/textvqa"),
        ),
    )
)
