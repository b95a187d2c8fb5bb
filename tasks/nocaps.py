"""NoCaps: captions of OpenImages photographs, with objects that COCO captions do not know.

Agrawal et al., "nocaps" (ICCV 2019). val: 4,500 images with ten captions each; test: 10,600 images, scored by a
server. Metrics as for COCO captions. `overall` is scored on all images, each domain with references of that domain
alone (CIDEr's word frequencies change with the set). The domain is the `domain` field of the released JSON: 417 in,
2,670 near and 1,413 out-domain, while nocaps.org says 648, 2,938 and 914; the hub table has no domain.
"""

from __future__ import annotations

import functools

from evalkit.data import IMAGES
from evalkit.formats import CaptionedImage, coco_captions, maybe, need, need_id, typical_caption, typical_of_all
from evalkit.metrics.caption import caption_metric
from evalkit.prompts import CAPTION_PROMPTS
from evalkit.types import Dataset, Decoding, Expected, Hub, ResultFormat, Slot, Source, Task


def load(source: Source, *, annotated: bool) -> Dataset:
    """Read the images, on val with their captions."""
    if source.kind == "hub":
        images = []
        for number, row in enumerate(source.rows()):
            where = f"row {number}"
            texts = need(row, "annotations_captions", where, list) if annotated else []
            ids = maybe(row, "annotations_ids", where, list) or range(len(texts))
            captions = tuple((str(key), str(text)) for key, text in zip(ids, texts, strict=False))
            identity, file_name = need_id(row, "image_id", where), need(row, "image_file_name", where, str)
            images.append(CaptionedImage(id=identity, image_id=file_name, captions=captions))
    else:
        images = coco_captions(source, "annotations", annotated=annotated, tags=("domain",))
    return Dataset(samples=tuple(image.sample() for image in images), images=source.images())


TASKS = tuple(
    Task(
        name=f"nocaps/{split}",
        kind="generate",
        summary=f"NoCaps {split}: captions with objects unknown to COCO ({note})",
        load=functools.partial(load, annotated=split == "val"),
        metrics=(caption_metric(),),
        primary="CIDEr",
        prompts=CAPTION_PROMPTS,
        decoding=Decoding(max_new_tokens=30),
        extract="first_line",
        slots=(
            Slot(name="annotations", default=default, summary="JSON in COCO's format"),
            Slot(name=IMAGES, default=split, required=False, summary="folder of OpenImages photographs"),
        ),
        hub=Hub(
            repo="lmms-lab/NoCaps",
            split=hub_split,
            revision="a26b3fe1e0021164ec430c57c48085d58f2fe922",
            image_id_column="image_file_name",
        ),
        expected=expected,
        results=ResultFormat(id_key="image_id", answer_key="caption"),
        breakdowns=("domain",) if split == "val" else (),
        perfect=typical_caption if split == "val" else None,
        majority=typical_of_all if split == "val" else None,
    )
    for split, note, default, hub_split, expected in (
        (
            "val",
            "public captions",
            "nocaps_val_4500_captions.json",
            "validation",
            Expected(
                samples=4_500,
                images=4_500,
                texts=45_000,
                groups={"domain": {"in-domain": 417, "near-domain": 2_670, "out-domain": 1_413}},
                source="nocaps_val_4500_captions.json",
            ),
        ),
        (
            "test",
            "scored by the server",
            "nocaps_test_image_info.json",
            "test",
            Expected(samples=10_600, images=10_600, source="nocaps.org"),
        ),
    )
)
