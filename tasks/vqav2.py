"""VQAv2: open questions about COCO photographs, ten people's answers each.

Goyal et al., "Making the V in VQA Matter" (CVPR 2017). val has public answers (214,354 questions on 40,504 images);
test-dev (107,394) and test (447,793) are scored by a server, so evalkit writes the file it takes. Metric: VQA
accuracy, by default as the official script has computed it since 2021; `metric_variant=legacy` is the older code that
BLIP-2 and Qwen-VL shipped. Images: COCO val2014 and test2015.
"""

from __future__ import annotations

import functools

from evalkit.data import IMAGES
from evalkit.formats import answer_list, best_answer, vqa_sample, vqa_samples
from evalkit.metrics.vqa import vqa_accuracy, vqa_metric
from evalkit.prompts import VQA_PROMPTS
from evalkit.types import Dataset, Decoding, Expected, Hub, ResultFormat, Slot, Source, Task

PERFECT = functools.partial(best_answer, accuracy=functools.partial(vqa_accuracy, variant="official"))


def _load(source: Source, *, annotated: bool) -> Dataset:
    if source.kind == "hub":
        samples = tuple(vqa_sample(row, row, f"row {number}") for number, row in enumerate(source.rows()))
    else:
        samples = vqa_samples(source, annotated=annotated)
    return Dataset(samples=samples, images=source.images(), candidates=answer_list(source))


def load_open(source: Source) -> Dataset:
    """Read questions and annotations."""
    return _load(source, annotated=True)


def load_blind(source: Source) -> Dataset:
    """Read questions; the server keeps the answers."""
    return _load(source, annotated=False)


def _slots(questions: str, images: str, annotations: str | None = None) -> tuple[Slot, ...]:
    files = [Slot(name="questions", default=f"v2_OpenEnded_mscoco_{questions}_questions.json", summary="official JSON")]
    if annotations:
        files.append(
            Slot(name="annotations", default=f"v2_mscoco_{annotations}_annotations.json", summary="official JSON")
        )
    return (
        *files,
        Slot(name="answers", default="answer_list.json", required=False, summary="answers to rank, a list of texts"),
        Slot(name=IMAGES, default=images, required=False, summary="folder of COCO images"),
    )


_SPLITS = {
    "val": (
        "public answers",
        _slots("val2014", "val2014", "val2014"),
        "validation",
        Expected(samples=214_354, images=40_504, source="visualqa.org: val2014"),
    ),
    "test-dev": (
        "scored by the server",
        _slots("test-dev2015", "test2015"),
        "testdev",
        Expected(samples=107_394, source="card of lmms-lab/VQAv2"),
    ),
    "test": (
        "test-standard, scored by the server",
        _slots("test2015", "test2015"),
        "test",
        Expected(samples=447_793, images=81_434, source="visualqa.org: test2015"),
    ),
}

TASKS = tuple(
    Task(
        name=f"vqav2/{variant}",
        kind="generate",
        summary=f"VQAv2 {variant}: open questions about COCO photographs ({note})",
        load=load_open if variant == "val" else load_blind,
        metrics=(vqa_metric("official"),),
        primary="vqa_accuracy",
        variant="official",
        by_variant=vqa_metric,
        prompts=VQA_PROMPTS,
        decoding=Decoding(max_new_tokens=10),
        extract="first_line",
        slots=slots,
        hub=Hub(repo="lmms-lab/VQAv2", split=hub_split, image_id_column="image_id"),
        expected=expected,
        results=ResultFormat(id_key="question_id", answer_key="answer"),
        breakdowns=("answer_type", "question_type"),
        perfect=PERFECT if variant == "val" else None,
    )
    for variant, (note, slots, hub_split, expected) in _SPLITS.items()
)
