"""COCO captions: one sentence for a photograph, held against five or six people's sentences.

Chen et al., "Microsoft COCO Captions" (2015); the test and val splits are Karpathy's (5,000 images and 25,010
captions each, all from val2014). Metrics: BLEU-1..4, METEOR, ROUGE-L, CIDEr-D, SPICE of coco-caption. A caption file
in COCO's format given alone means all its images; with `data.karpathy` those of the split; Karpathy's file alone
holds the captions too.
"""

from __future__ import annotations

import functools

from evalkit.data import IMAGES
from evalkit.formats import CaptionedImage, coco_captions, karpathy, karpathy_file, typical_caption, typical_of_all
from evalkit.metrics.caption import caption_metric
from evalkit.prompts import CAPTION_PROMPTS
from evalkit.types import Dataset, Decoding, Expected, Hub, ResultFormat, Slot, Source, Task


def load(source: Source, split: str) -> Dataset:
    """Read the captions of a split."""
    if source.kind == "hub":
        images = karpathy(source.rows(), (split,), "the hub table")
    elif source.has("annotations"):
        images = coco_captions(source, "annotations", annotated=True)
        if source.has("karpathy"):
            images = _restrict(images, karpathy(karpathy_file(source), (split,), "data.karpathy"))
    else:
        images = karpathy(karpathy_file(source), (split,), source.path("karpathy").name)
    return Dataset(samples=tuple(image.sample() for image in images), images=source.images())


def _restrict(images: list[CaptionedImage], split: list[CaptionedImage]) -> list[CaptionedImage]:
    """Return the images of the split, in its order."""
    by_id = {image.id: image for image in images}
    return [by_id[image.id] for image in split if image.id in by_id]


TASKS = tuple(
    Task(
        name=f"coco_caption/{split}",
        kind="generate",
        summary=f"COCO captions, Karpathy {split}: one sentence for a photograph",
        load=functools.partial(load, split=split),
        metrics=(caption_metric(),),
        primary="CIDEr",
        prompts=CAPTION_PROMPTS,
        decoding=Decoding(max_new_tokens=30),
        extract="first_line",
        slots=(
            Slot(
                name="annotations",
                default="annotations/captions_val2014.json",
                required=False,
                summary="captions in COCO's format; given alone, all its images",
            ),
            Slot(
                name="karpathy",
                default="dataset_coco.json",
                required=False,
                summary="Karpathy's split file; or data.annotations=FILE, captions in COCO's format",
            ),
            Slot(name=IMAGES, default="val2014", required=False, summary="folder of COCO images"),
        ),
        hub=Hub(
            repo="yerevann/coco-karpathy",
            split="validation" if split == "val" else split,
            revision="448fdb1bc7b2d09e46881c4541a14d796a3d41e8",
        ),
        expected=Expected(
            samples=5_000,
            images=5_000,
            texts=25_010,
            fingerprint=fingerprint,
            source="Karpathy's dataset_coco.json",
        ),
        results=ResultFormat(id_key="image_id", answer_key="caption"),
        perfect=typical_caption,
        majority=typical_of_all,
    )
    for split, fingerprint in (
        ("test", "69d3833be2a04edff0b3ea1984d359ad520dfe77d754dfaf6cf15f1a321db74e"),
        ("val", "3e76099cbe547c1abff94ab8893cfbe765bd3d7a9ba53d48278e244fffb9400f"),
    )
)
