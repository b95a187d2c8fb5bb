"""Image-text retrieval: for each photograph its captions among all, for each caption its photograph.

Karpathy and Fei-Fei (CVPR 2015) test splits: COCO 5K (5,000 images with 25,010 captions; ten images have six) and
Flickr30k 1K (1,000 images, 5,000 captions). Metric: recall at 1, 5 and 10, both ways, from ITC similarity and from
re-ranking its top k by ITM. Captions are cleaned as LAVIS does before they are embedded (`question_filter=none`
leaves them). On the hub, lmms-lab/flickr30k calls all 31,783 images "test"; the hub's parquet copy of
nlphuji/flickr30k, which is read here, names each row's split.
"""

from __future__ import annotations

from collections.abc import Mapping

from evalkit.data import IMAGES
from evalkit.formats import coco_captions, karpathy, karpathy_file, texts_of
from evalkit.metrics.retrieval import retrieval_metric
from evalkit.types import Dataset, Expected, Hub, ResultFormat, Sample, Slot, Source, Task


def load(source: Source) -> Dataset:
    """Read the test split of Karpathy's file; a caption file in COCO's format in its place means all its images."""
    if source.kind == "hub":
        images = karpathy(source.rows(), ("test",), "the hub table")
    else:
        found = source.read("karpathy")
        if isinstance(found, Mapping) and "annotations" in found:
            images = coco_captions(source, "karpathy", annotated=True)
        else:
            images = karpathy(karpathy_file(source), ("test",), source.path("karpathy").name)
    samples = tuple(
        Sample(id=image.id, image_ids=(image.image_id,), reference={"text_ids": [key for key, _ in image.captions]})
        for image in images
    )
    return Dataset(samples=samples, images=source.images(), texts=texts_of(images))


TASKS = tuple(
    Task(
        name=f"retrieval/{variant}",
        kind="retrieve",
        summary=summary,
        load=load,
        metrics=(retrieval_metric(),),
        primary="r_mean",
        variant="itm+itc",
        by_variant=retrieval_metric,
        question_filter="blip-caption",
        slots=(
            Slot(name="karpathy", default=default, summary="Karpathy's split file, or captions in COCO's format"),
            Slot(name=IMAGES, default=images, required=False, summary="folder of images"),
        ),
        hub=hub,
        expected=expected,
        results=ResultFormat(id_key="image_id", answer_key="pairs"),
    )
    for variant, summary, default, images, hub, expected in (
        (
            "coco",
            "Image-text retrieval on COCO 5K (Karpathy test), both ways",
            "dataset_coco.json",
            "val2014",
            Hub(repo="yerevann/coco-karpathy", split="test", revision="448fdb1bc7b2d09e46881c4541a14d796a3d41e8"),
            Expected(
                samples=5_000,
                images=5_000,
                texts=25_010,
                fingerprint="f85ab295e51cc71f737c24b907c8e95e86a7aa781bc2c49249af46da8fa6a834",
                source="Karpathy's dataset_coco.json, whose caption ids are COCO's",
            ),
        ),
        (
            "flickr30k",
            "Image-text retrieval on Flickr30k 1K (Karpathy test), both ways",
            "dataset_flickr30k.json",
            "flickr30k-images",
            Hub(repo="nlphuji/flickr30k", split="test", revision="cd91f9a", image_id_column="filename"),
            Expected(samples=1_000, images=1_000, texts=5_000, source="Karpathy's dataset_flickr30k.json"),
        ),
    )
)
