"""RefCOCO, RefCOCO+ and RefCOCOg: find the object that an expression refers to.

Yu et al., "Modeling Context in Referring Expressions" (ECCV 2016), and Mao et al. (CVPR 2016); RefCOCO and RefCOCO+
with the UNC splits (testA: people, testB: other objects), RefCOCOg with the UMD splits. One sample is one expression.
Metric: the share of boxes with IoU of at least 0.5. Official boxes are [x, y, width, height]; here they become (x1,
y1, x2, y2), in pixels of the original image; the default extraction reads fractions of the image, as LLaVA and Shikra
write them (`extract=box_999`, `box_1000`, `box_pixels` for others). On the hub, val of lmms-lab/RefCOCO and RefCOCOg
has other splits mixed in (8,811 and 7,573 objects, not 3,811 and 2,573): its count is refused, use the official
files.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from evalkit.data import IMAGES
from evalkit.errors import DataError
from evalkit.formats import need, records
from evalkit.images import FolderImages, RowImages, image_key
from evalkit.metrics.grounding import grounding_metric
from evalkit.types import Dataset, Decoding, Expected, Hub, ResultFormat, Sample, Slot, Source, Task


def load(source: Source, split: str) -> Dataset:
    """Read the expressions of a split and the boxes they refer to."""
    samples = _hub_samples(source) if source.kind == "hub" else _samples(source, split)
    return Dataset(samples=tuple(samples), images=source.images())


def _samples(source: Source, split: str) -> list[Sample]:
    instances = source.path("instances").name
    images = {image["id"]: image for image in records(source, "instances", "images")}
    boxes = {box["id"]: box for box in records(source, "instances", "annotations")}
    refs = source.path("refs").name
    samples = []
    for number, ref in enumerate(records(source, "refs")):
        where = f"{refs}: reference {ref.get('ref_id', number)}"
        if need(ref, "split", where) != split:
            continue
        box = boxes.get(need(ref, "ann_id", where))
        image = images.get(need(ref, "image_id", where))
        if box is None or image is None:
            lost = f"annotation {ref['ann_id']}" if box is None else f"image {ref['image_id']}"
            raise DataError(
                f"{where} names {lost}, which {instances} does not have: the two files belong to different sets"
            )
        xywh = need(box, "bbox", f"{instances}: annotation {box['id']}")
        size = need(image, "width", f"{instances}: image"), need(image, "height", f"{instances}: image")
        samples += [
            _sample(
                str(need(sentence, "sent_id", where)),
                image_key(image["id"]),
                str(need(sentence, "sent", where)),
                xywh,
                size=size,
            )
            for sentence in need(ref, "sentences", where)
        ]
    return samples


def _hub_samples(source: Source) -> list[Sample]:
    """One row is one object with all its expressions; its size stands in the header of its image only."""
    images = source.images()
    assert isinstance(images, FolderImages | RowImages)
    samples = []
    for number, row in enumerate(source.rows()):
        where = f"row {number}"
        image_id = image_key(need(row, "file_name", where))
        size = images.size(image_id)
        for place, expression in enumerate(need(row, "answer", where)):
            key = f"{need(row, 'question_id', where)}.{place}"
            samples.append(_sample(key, image_id, str(expression), need(row, "bbox", where), size=size))
    return samples


def _sample(key: str, image_id: str, expression: str, xywh: Sequence[float], *, size: tuple[int, int]) -> Sample:
    x, y, width, height = map(float, xywh)
    return Sample(
        id=key,
        image_ids=(image_id,),
        fields={"expression": expression, "width": int(size[0]), "height": int(size[1])},
        reference={"box": [x, y, x + width, y + height]},
    )


def perfect(sample: Sample) -> str:
    """Return the right box as the default extraction reads it: fractions of the image."""
    return _fractions([_normalised(sample)])


def majority(samples: Sequence[Sample]) -> str:
    """Return the mean box of all, in fractions of the image: the best guess without looking."""
    return _fractions([_normalised(sample) for sample in samples])


def _normalised(sample: Sample) -> tuple[float, ...]:
    width, height = float(sample.fields["width"]), float(sample.fields["height"])
    x1, y1, x2, y2 = sample.reference["box"]
    return x1 / width, y1 / height, x2 / width, y2 / height


def _fractions(boxes: Sequence[tuple[float, ...]]) -> str:
    corners = (sum(side) / len(boxes) for side in zip(*boxes, strict=True))
    return f"[{', '.join(f'{corner:.12f}' for corner in corners)}]"


@dataclass(frozen=True, kw_only=True)
class _Split:
    variant: str
    folder: str
    refs: str
    split: str
    hub: str
    expressions: int
    images: int


_SPLITS = (
    _Split(variant="val", folder="refcoco", refs="unc", split="val", hub="RefCOCO", expressions=10_834, images=1_500),
    _Split(variant="testA", folder="refcoco", refs="unc", split="testA", hub="RefCOCO", expressions=5_657, images=750),
    _Split(variant="testB", folder="refcoco", refs="unc", split="testB", hub="RefCOCO", expressions=5_095, images=750),
    _Split(
        variant="plus-val",
        folder="refcoco+",
        refs="unc",
        split="val",
        hub="RefCOCOplus",
        expressions=10_758,
        images=1_500,
    ),
    _Split(
        variant="plus-testA",
        folder="refcoco+",
        refs="unc",
        split="testA",
        hub="RefCOCOplus",
        expressions=5_726,
        images=750,
    ),
    _Split(
        variant="plus-testB",
        folder="refcoco+",
        refs="unc",
        split="testB",
        hub="RefCOCOplus",
        expressions=4_889,
        images=750,
    ),
    _Split(
        variant="g-val", folder="refcocog", refs="umd", split="val", hub="RefCOCOg", expressions=4_896, images=1_300
    ),
    _Split(
        variant="g-test", folder="refcocog", refs="umd", split="test", hub="RefCOCOg", expressions=9_602, images=2_600
    ),
)

_REVISIONS = {
    "RefCOCO": "a5dff0b3194715fda69b2d6a0d2aaafb41eaa407",
    "RefCOCOplus": "6ff10a221309bc4791d1ff7d57f8bbcb509b9e9d",
    "RefCOCOg": "93af55545967808285637a67431e4971a6f9fd49",
}
_NAMES = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "RefCOCOg"}

TASKS = tuple(
    Task(
        name=f"refcoco/{each.variant}",
        kind="ground",
        summary=f"{_NAMES[each.folder]} {each.split} ({each.refs.upper()}): find the object an expression refers to",
        load=functools.partial(load, split=each.split),
        metrics=(grounding_metric("continuous"),),
        primary="Acc@0.5",
        variant="continuous",
        by_variant=grounding_metric,
        prompts={
            "completion": "<ref>{expression}</ref><box>",
            "bare": "<ref>{expression}</ref><box>",
            "short-answer": "Question: where is {expression}? Short answer:",
            "question": "{expression}",
            "chat": "Please provide the bounding box coordinate of the region this sentence describes: {expression}",
        },
        decoding=Decoding(max_new_tokens=28),
        extract="box_0_1",
        slots=(
            Slot(name="refs", default=f"{each.folder}/refs({each.refs}).p", summary="official pickle of expressions"),
            Slot(name="instances", default=f"{each.folder}/instances.json", summary="official boxes, in COCO's format"),
            Slot(name=IMAGES, default="train2014", required=False, summary="folder of COCO images"),
        ),
        hub=Hub(
            repo=f"lmms-lab/{each.hub}",
            split=each.split,
            revision=_REVISIONS[each.hub],
            image_id_column="file_name",
        ),
        expected=Expected(
            samples=each.expressions,
            images=each.images,
            source=f"{each.folder}/refs({each.refs}).p as MiniGPT-v2 counts it",
        ),
        results=ResultFormat(id_key="sent_id", answer_key="bbox"),
        perfect=perfect,
        majority=majority,
    )
    for each in _SPLITS
)
